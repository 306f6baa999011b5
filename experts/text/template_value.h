/* Values of the chat template interpreter: Python's, as far as templates can see them. Everything
 * lives in the heap of one render and is freed with it at once, so an error may leave from any
 * depth (rt_fail jumps out) and nothing needs to be undone on the way. */
#ifndef SWITCHYARD_EXPERTS_TEMPLATE_VALUE_H
#define SWITCHYARD_EXPERTS_TEMPLATE_VALUE_H

#include "base/base.h"

#include <setjmp.h>

/* A render that reaches one of these stops with an error: a template can not hang the server. */
enum {
    TEMPLATE_STEPS_MAX = 10 * 1000 * 1000, /* expressions, loop rounds, items touched by filters */
    TEMPLATE_DEPTH_MAX = 1000,     /* nested evaluations; Python's own limit is 1000 calls */
    TEMPLATE_RANGE_MAX = 100000,   /* as Jinja's sandbox */
    TEMPLATE_SOURCE_MAX = 1 << 20, /* bytes of template source */
};
#define TEMPLATE_OUTPUT_MAX ((size_t)16 << 20)
#define TEMPLATE_MEMORY_MAX ((size_t)256 << 20)

enum value_kind {
    VALUE_MISSING, /* internal: an argument not given, a name not set */
    VALUE_UNDEFINED,
    VALUE_NONE,
    VALUE_BOOL,
    VALUE_INT,
    VALUE_FLOAT,
    VALUE_STR,
    VALUE_LIST,
    VALUE_TUPLE,
    VALUE_DICT,
    VALUE_RANGE,
    VALUE_VIEW, /* dict.keys(), .values(), .items() */
    VALUE_ITER, /* a generator: consumed by iterating */
    VALUE_NAMESPACE,
    VALUE_LOOP,
    VALUE_MACRO,
    VALUE_FUNCTION, /* a global such as range */
    VALUE_METHOD,   /* a method bound to its object */
    VALUE_CYCLER,
    VALUE_JOINER,
};

struct value {
    enum value_kind kind;
    union {
        bool b;
        int64_t i;
        double f;
        struct str *str;
        struct list *list; /* LIST and TUPLE */
        struct dict *dict; /* DICT and NAMESPACE */
        struct range *range;
        struct view *view;
        struct iter *iter;
        struct loop *loop;
        struct macro *macro;
        struct method *method;
        struct cycler *cycler;
        struct joiner *joiner;
        struct undefined *undefined; /* may be NULL */
        uint32_t function;           /* index into the table of globals */
    };
};

/* Valid UTF-8. Strings share bytes: a slice points into what it was cut from. */
struct str {
    const char *data;
    uint32_t len;
    uint32_t chars; /* STR_UNCOUNTED until someone asks */
    bool markup;    /* Markup: `+` escapes what is not */
};
#define STR_UNCOUNTED UINT32_MAX

struct list {
    struct value *items;
    uint32_t count, cap;
    bool grouped; /* a groupby tuple: .grouper and .list name its items */
};

struct dict_entry {
    struct value key, value;
};
/* In order of insertion; an index of positions from DICT_INDEX_MIN entries on. */
struct dict {
    struct dict_entry *entries;
    uint32_t count, cap;
    uint32_t *index; /* position + 1, 0 = free */
    uint32_t index_mask;
};
enum { DICT_INDEX_MIN = 9 };

struct range {
    int64_t start, stop, step, count;
};

enum view_kind { VIEW_KEYS, VIEW_VALUES, VIEW_ITEMS };
struct view {
    struct dict *dict;
    enum view_kind kind;
};

/* Why a value is undefined, for the message when somebody uses it. */
struct undefined {
    const char *hint; /* the whole message, or NULL: then made from the two below */
    const struct str *name;
    enum value_kind owner; /* VALUE_MISSING: a variable */
};

struct method {
    struct value self;
    const struct method_def *def;
};
struct cycler {
    struct list *items;
    uint32_t pos;
};
struct joiner {
    struct str *sep;
    bool used;
};

/* ---- the render's state ---------------------------------------------------------------------- */

struct bump {
    char *at, *end;
    struct bump_block *blocks;
};

struct rt {
    const struct chat_template *t;
    struct bump objects, chars; /* apart, so that a growing string can grow in place */
    size_t memory;              /* bytes of both */
    struct scratch *scratch, *scratch_free;
    struct json_t *json; /* being converted */
    uint64_t steps;
    uint32_t depth;
    int32_t line; /* of what is being evaluated, for messages */
    struct buf *out;
    size_t out_base;       /* where this render's text begins */
    struct value *globals; /* [names of the template]: context and top-level names */
    int64_t now;
    struct err *e;
    enum err_code code;
    jmp_buf on_error;
};

/* Leave the render. `fmt` gets "template line N: " in front. */
void rt_fail(struct rt *rt, enum err_code code, const char *fmt, ...) BASE_PRINTF(3, 4)
    __attribute__((noreturn));
/* The message as it is: what a template raised. */
void rt_raise(struct rt *rt, const char *msg, size_t len) __attribute__((noreturn));
void rt_steps(struct rt *rt, uint64_t n);
static inline void rt_enter(struct rt *rt)
{
    if (++rt->depth > TEMPLATE_DEPTH_MAX)
        rt_fail(rt, ERR_TOO_LARGE, "nested more than %d deep", TEMPLATE_DEPTH_MAX);
}
static inline void rt_leave(struct rt *rt)
{
    rt->depth--;
}
void *rt_alloc(struct rt *rt, size_t bytes); /* zeroed, 16-byte aligned */
void *rt_array(struct rt *rt, size_t count, size_t elem_bytes);
char *rt_chars(struct rt *rt, size_t bytes);
void rt_done(struct rt *rt);

/* ---- making values --------------------------------------------------------------------------- */

static inline struct value value_none(void)
{
    return (struct value){.kind = VALUE_NONE};
}
static inline struct value value_bool(bool b)
{
    return (struct value){.kind = VALUE_BOOL, .b = b};
}
static inline struct value value_int(int64_t i)
{
    return (struct value){.kind = VALUE_INT, .i = i};
}
static inline struct value value_float(double f)
{
    return (struct value){.kind = VALUE_FLOAT, .f = f};
}
static inline struct value value_str(struct str *s)
{
    return (struct value){.kind = VALUE_STR, .str = s};
}
static inline struct value value_list(struct list *l)
{
    return (struct value){.kind = VALUE_LIST, .list = l};
}
static inline struct value value_tuple(struct list *l)
{
    return (struct value){.kind = VALUE_TUPLE, .list = l};
}
static inline struct value value_dict(struct dict *d)
{
    return (struct value){.kind = VALUE_DICT, .dict = d};
}
static inline struct value value_undefined(struct undefined *why)
{
    return (struct value){.kind = VALUE_UNDEFINED, .undefined = why};
}
struct value value_undefined_hint(struct rt *rt, const char *hint);

struct str *str_new(struct rt *rt, const char *data, size_t len);                   /* copies */
struct str *str_wrap(struct rt *rt, const char *data, size_t len);                  /* shares */
struct str *str_slice(struct rt *rt, const struct str *s, size_t from, size_t len); /* bytes */
struct str *str_concat(struct rt *rt, const struct str *a, const struct str *b);
struct str *str_from_buf(struct rt *rt, const struct buf *b, size_t from); /* copies the tail */
size_t str_chars(struct str *s);
static inline bool str_ascii(struct str *s)
{
    return str_chars(s) == s->len;
}
bool str_equal(const struct str *a, const struct str *b);
bool str_is(const struct str *s, const char *text);

struct list *list_new(struct rt *rt, size_t cap);
void list_push(struct rt *rt, struct list *l, struct value v);
struct value tuple_pair(struct rt *rt, struct value a, struct value b);
struct dict *dict_new(struct rt *rt, size_t cap);
void dict_put(struct rt *rt, struct dict *d, struct value key, struct value v);
const struct value *dict_get(struct rt *rt, const struct dict *d,
                             struct value key); /* NULL = absent */
const struct value *dict_get_str(const struct dict *d, const struct str *key);

/* ---- Python's rules -------------------------------------------------------------------------- */

const char *value_type_name(const struct value *v); /* "str", "NoneType" */
bool value_truthy(const struct value *v);
bool value_is_number(const struct value *v);               /* int, float, bool */
bool value_as_int(const struct value *v, int64_t *ret);    /* int and bool only */
double value_as_float(const struct value *v);              /* of a number */
uint64_t value_hash(struct rt *rt, const struct value *v); /* fails for what Python can not hash */
bool value_hashable(const struct value *v);
bool value_equal(struct rt *rt, const struct value *a, const struct value *b);
/* < 0, 0, > 0; fails for what Python can not order. `op` is for the message. */
int value_compare(struct rt *rt, const struct value *a, const struct value *b, const char *op);
/* Number of items; false if the value has no len(). */
bool value_length(struct value *v, int64_t *ret);
void value_fail_undefined(struct rt *rt, const struct value *v) __attribute__((noreturn));

/* str(), repr() and json.dumps(), appended. */
void value_print(struct rt *rt, struct value *v, struct buf *out);
void value_repr(struct rt *rt, const struct value *v, struct buf *out);
struct str *value_to_str(struct rt *rt, struct value *v);
void float_repr(double f, char out[32]);
struct json_style {
    const char *item_sep, *key_sep;
    const char *indent; /* NULL = one line */
    bool ensure_ascii, sort_keys;
};
void value_to_json(struct rt *rt, const struct value *v, const struct json_style *style,
                   struct buf *out);
/* JSON text to a value; errors name `what`. */
struct value value_from_json(struct rt *rt, const char *json, const char *what);

void value_json_done(struct rt *rt);

/* A scratch buffer that the render frees if an error leaves before rt_give_scratch. */
struct buf *rt_take_scratch(struct rt *rt);
void rt_give_scratch(struct rt *rt, struct buf *b);
struct str *rt_give_str(struct rt *rt,
                        struct buf *b); /* the text of a scratch buffer, given back */
/* Fails unless `bytes` more fit the memory limit: asked before anything whose size a template or a
 * client can choose is built. */
void rt_room(struct rt *rt, size_t bytes);

/* ---- iteration ------------------------------------------------------------------------------- */

/* `next` puts an item and returns true, or returns false at the end. */
struct iter {
    bool (*next)(struct rt *rt, struct iter *it, struct value *ret);
    const char *name; /* of the generator, for printing */
    struct value source;
    struct iter *inner;
    uint32_t pos;
    int64_t count; /* what its generator counts */
    void *state;
    bool started, ended;
};
/* Fails if the value is not iterable. An iterator gives itself. */
struct iter *iter_of(struct rt *rt, struct value v);
bool value_iterable(const struct value *v);
bool iter_next(struct rt *rt, struct iter *it, struct value *ret);
struct list *list_of(struct rt *rt, struct value v); /* list(v) */
struct value value_iter(struct iter *it);

#endif
