/* Private to conf/: the table of keys and what is done with one value of it.
 *
 * One row per key drives everything: defaults, the file, the environment, flags, bounds, printing,
 * copying, freeing and help. A key that is added to the table needs no other code. */
#ifndef SWITCHYARD_CONF_SCHEMA_H
#define SWITCHYARD_CONF_SCHEMA_H

#include "base/base.h"
#include "conf/conf.h"

enum { CONF_KEYS_MAX = 64 }; /* rows of one table; schema.c checks it */

enum conf_kind {
    CONF_KIND_BOOL,   /* bool */
    CONF_KIND_UINT16, /* uint16_t */
    CONF_KIND_UINT32, /* uint32_t */
    CONF_KIND_INT32,  /* int32_t */
    CONF_KIND_INT64,  /* int64_t; unset = -1 where the default is "" */
    CONF_KIND_BYTES,  /* uint64_t, written as a size ("512MiB") */
    CONF_KIND_NUMBER, /* double; unset = NAN where the default is "" */
    CONF_KIND_TEXT,   /* char *, never NULL */
    CONF_KIND_PATH,   /* char *; a leading "~/" is expanded, relative to the file that names it */
    CONF_KIND_CHOICE, /* an enum, whose values are the positions in `choices` */
    CONF_KIND_LIST,   /* char ** and a size_t */
};

struct conf_key {
    const char *name; /* dotted, from the root of its table */
    const char *default_text;
    const char *help;
    const char *choices; /* "a|b|c" or NULL; restricts TEXT and LIST too */
    size_t at, count_at; /* offsets in struct conf or struct conf_expert */
    double min, max;     /* of numbers and sizes */
    enum conf_kind kind;
    bool secret; /* printed as "***" */
};

/* Rows of struct conf, grouped by section, and of struct conf_expert. */
extern const struct conf_key conf_top_keys[];
extern const size_t conf_top_keys_count;
extern const struct conf_key conf_expert_keys[];
extern const size_t conf_expert_keys_count;

/* NULL = absent. */
const struct conf_key *conf_key_find(const struct conf_key *keys, size_t count, const char *name);
/* Is `name` the dotted prefix of some key ("server")? */
bool conf_key_is_section(const struct conf_key *keys, size_t count, const char *name);
/* The name a person probably meant, NULL if none is near. */
const char *conf_key_nearest(const struct conf_key *keys, size_t count, const char *name);

/* ---- one value; `base` is the struct conf or struct conf_expert that holds it ---- */

/* Parse and check `text`. `shown` is the key as errors name it, `dir` the directory that relative
 * paths start from (NULL = the current one). On failure nothing is changed. */
enum err_code conf_value_set(const struct conf_key *key, void *base, const char *shown,
                             const char *text, const char *dir, struct err *e) BASE_NODISCARD;
/* Replace a list by `count` items, which are copied. */
enum err_code conf_value_set_list(const struct conf_key *key, void *base, const char *shown,
                                  char *const *items, size_t count, struct err *e) BASE_NODISCARD;
void conf_value_init(const struct conf_key *key, void *base); /* the default, over garbage */
void conf_value_copy(const struct conf_key *key, void *dst, const void *src); /* dst is garbage */
void conf_value_done(const struct conf_key *key, void *base);
/* Optional and not given: empty text, empty list, unset number. */
bool conf_value_is_unset(const struct conf_key *key, const void *base);
/* As JSON, which is YAML as well; sizes are numbers in JSON and "512MiB" in YAML. */
void conf_value_format(const struct conf_key *key, const void *base, bool json, struct buf *out);
/* "integer 1..16", "size", "one of lru, gdsf": for help. */
void conf_value_type(const struct conf_key *key, char *buf, size_t cap);

void conf_expert_init(struct conf_expert *x);
void conf_expert_done(struct conf_expert *x);
void conf_copy(struct conf *dst, const struct conf *src); /* dst is garbage */

#endif
