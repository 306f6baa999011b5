/* The configuration as a whole: defaults, single keys from text and environment, copies, the list
 * of keys, printing. All of it walks the table in schema.c. */
#include "conf/conf.h"

#include "conf/schema.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

void conf_expert_init(struct conf_expert *x)
{
    for (size_t i = 0; i < conf_expert_keys_count; i++)
        conf_value_init(&conf_expert_keys[i], x);
}

void conf_expert_done(struct conf_expert *x)
{
    for (size_t i = 0; i < conf_expert_keys_count; i++)
        conf_value_done(&conf_expert_keys[i], x);
}

void conf_init(struct conf *c)
{
    memset(c, 0, sizeof(*c));
    for (size_t i = 0; i < conf_top_keys_count; i++)
        conf_value_init(&conf_top_keys[i], c);
}

void conf_done(struct conf *c)
{
    for (size_t i = 0; i < conf_top_keys_count; i++)
        conf_value_done(&conf_top_keys[i], c);
    for (size_t i = 0; i < c->experts_count; i++)
        conf_expert_done(&c->experts[i]);
    free(c->experts);
    c->experts = NULL;
    c->experts_count = 0;
}

void conf_copy(struct conf *dst, const struct conf *src)
{
    memset(dst, 0, sizeof(*dst));
    for (size_t i = 0; i < conf_top_keys_count; i++)
        conf_value_copy(&conf_top_keys[i], dst, src);
    dst->experts_count = src->experts_count;
    if (src->experts_count > 0)
        dst->experts = mem_array(src->experts_count, sizeof(*dst->experts));
    for (size_t x = 0; x < src->experts_count; x++) {
        for (size_t i = 0; i < conf_expert_keys_count; i++)
            conf_value_copy(&conf_expert_keys[i], &dst->experts[x], &src->experts[x]);
    }
}

/* ---- single keys ---- */

enum err_code conf_set(struct conf *c, const char *key, const char *value, struct err *e)
{
    const struct conf_key *row = conf_key_find(conf_top_keys, conf_top_keys_count, key);
    if (row != NULL)
        return conf_value_set(row, c, key, value, NULL, e);
    if (strncmp(key, "experts", 7) == 0 && (key[7] == '\0' || key[7] == '[' || key[7] == '.'))
        return err_set_param(e, ERR_INVALID, key,
                             "%s: experts are described in the configuration file only", key);
    const char *near = conf_key_nearest(conf_top_keys, conf_top_keys_count, key);
    if (near != NULL)
        return err_set_param(e, ERR_INVALID, key, "unknown key '%.80s': did you mean '%s'?", key,
                             near);
    return err_set_param(e, ERR_INVALID, key, "unknown key '%.80s'", key);
}

/* "tiers.hbm" -> "SWITCHYARD_TIERS_HBM" */
static void environment_name(const char *key, char *name, size_t cap)
{
    (void)snprintf(name, cap, "SWITCHYARD_%s", key);
    for (char *p = name; *p != '\0'; p++)
        *p = *p == '.' ? '_' : (char)toupper((unsigned char)*p);
}

enum err_code conf_load_environment(struct conf *c, struct err *e)
{
    struct conf next;
    conf_copy(&next, c);
    for (size_t i = 0; i < conf_top_keys_count; i++) {
        const struct conf_key *key = &conf_top_keys[i];
        char name[96];
        environment_name(key->name, name, sizeof(name));
        const char *value = getenv(name);
        /* Container tools pass a variable that nobody set as an empty one. */
        if (value == NULL || value[0] == '\0')
            continue;
        enum err_code rc = conf_value_set(key, &next, key->name, value, NULL, e);
        if (rc != ERR_OK) {
            conf_done(&next);
            err_wrap(e, "environment variable %s", name);
            return rc;
        }
    }
    conf_done(c);
    *c = next;
    return ERR_OK;
}

/* ---- the list of keys ---- */

enum { TYPE_TEXT_BYTES = 160, EXPERT_NAME_BYTES = 48, INFOS_MAX = 2 * CONF_KEYS_MAX };

/* Built once from the two tables; never changed or freed afterwards. */
static struct conf_key_info infos[INFOS_MAX];
static size_t infos_count;
static char type_texts[INFOS_MAX][TYPE_TEXT_BYTES];
static char expert_names[INFOS_MAX][EXPERT_NAME_BYTES];
static pthread_once_t infos_once = PTHREAD_ONCE_INIT;

static void add_info(const char *name, const struct conf_key *key)
{
    conf_value_type(key, type_texts[infos_count], TYPE_TEXT_BYTES);
    infos[infos_count] = (struct conf_key_info){
        .key = name,
        .type = type_texts[infos_count],
        .default_text = key->default_text,
        .help = key->help,
    };
    infos_count++;
}

static void build_infos(void)
{
    for (size_t i = 0; i < conf_top_keys_count; i++)
        add_info(conf_top_keys[i].name, &conf_top_keys[i]);
    for (size_t i = 0; i < conf_expert_keys_count; i++) {
        (void)snprintf(expert_names[i], EXPERT_NAME_BYTES, "experts[].%s",
                       conf_expert_keys[i].name);
        add_info(expert_names[i], &conf_expert_keys[i]);
    }
}

const struct conf_key_info *conf_keys(size_t *ret_count)
{
    (void)pthread_once(&infos_once, build_infos);
    *ret_count = infos_count;
    return infos;
}

/* ---- printing ---- */

/* One nested object from rows with dotted names; rows of one section stand together. */
struct printer {
    struct buf *out;
    bool json;
    const char *indent; /* before each line of YAML */
    const char *first;  /* before the first line instead ("  - "), "" once used */
    char section[48];   /* the open one, "" at the root */
    bool any;           /* something was printed at the root */
    bool any_in_section;
};

static void begin_yaml_line(struct printer *p)
{
    buf_puts(p->out, p->first[0] != '\0' ? p->first : p->indent);
    p->first = "";
}

static void switch_section(struct printer *p, const char *section, size_t len)
{
    if (strlen(p->section) == len && memcmp(p->section, section, len) == 0)
        return;
    if (p->section[0] != '\0' && p->json)
        buf_puts(p->out, "}");
    (void)snprintf(p->section, sizeof(p->section), "%.*s", (int)len, section);
    p->any_in_section = false;
    if (len == 0)
        return;
    if (p->json) {
        buf_printf(p->out, "%s\"%s\": {", p->any ? ", " : "", p->section);
    } else {
        begin_yaml_line(p);
        buf_printf(p->out, "%s:\n", p->section);
    }
    p->any = true;
}

static void print_key(struct printer *p, const struct conf_key *key, const void *base)
{
    const char *dot = strchr(key->name, '.');
    const char *name = dot != NULL ? dot + 1 : key->name;
    switch_section(p, key->name, dot != NULL ? (size_t)(dot - key->name) : 0);
    bool *any = dot != NULL ? &p->any_in_section : &p->any;
    if (p->json) {
        buf_printf(p->out, "%s\"%s\": ", *any ? ", " : "", name);
    } else {
        begin_yaml_line(p);
        buf_printf(p->out, "%s%s: ", dot != NULL ? "  " : "", name);
    }
    conf_value_format(key, base, p->json, p->out);
    if (!p->json)
        buf_puts(p->out, "\n");
    *any = true;
}

static void print_expert(const struct conf_expert *x, bool json, struct buf *out)
{
    struct printer p = {.out = out, .json = json, .indent = "    ", .first = "  - "};
    if (json)
        buf_puts(out, "{");
    for (size_t i = 0; i < conf_expert_keys_count; i++) {
        if (!conf_value_is_unset(&conf_expert_keys[i], x))
            print_key(&p, &conf_expert_keys[i], x);
    }
    switch_section(&p, "", 0);
    if (json)
        buf_puts(out, "}");
}

void conf_format(const struct conf *c, bool json, struct buf *out)
{
    struct printer p = {.out = out, .json = json, .indent = "", .first = ""};
    if (json)
        buf_puts(out, "{");
    for (size_t i = 0; i < conf_top_keys_count; i++)
        print_key(&p, &conf_top_keys[i], c);
    switch_section(&p, "", 0);
    buf_puts(out, json                   ? ", \"experts\": ["
                  : c->experts_count > 0 ? "experts:\n"
                                         : "experts: []\n");
    for (size_t i = 0; i < c->experts_count; i++) {
        if (json && i > 0)
            buf_puts(out, ", ");
        print_expert(&c->experts[i], json, out);
    }
    if (json)
        buf_puts(out, "]}\n");
}
