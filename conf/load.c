/* The YAML file.
 *
 * Read with libyaml and not through libcyaml, which sits on top of it: libcyaml loads into a fresh
 * structure (ours goes over what flags and defaults set), knows no sizes with units and no dotted
 * bounds, and hands out the key, line and column of a mistake only as log text. Below it libyaml
 * gives a tree whose nodes carry their position, and the table does the rest.
 *
 * The tree is walked along the table, so depth and work are bounded by the table and the file size,
 * whatever anchors and aliases the file contains. */
#include "conf/conf.h"
#include "conf/schema.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { FILE_BYTES_MAX = 4 << 20, EXPERTS_MAX = 4096, PATH_BYTES = 96 };

struct loader {
    const char *file; /* as the caller named it, for messages */
    char *dir;        /* relative paths start here */
    yaml_document_t doc;
    struct conf *conf;
};

/* One mapping with the table that explains it. */
struct scope {
    const struct conf_key *keys;
    size_t keys_count;
    void *base;
    char shown[PATH_BYTES];   /* "experts[3]." before the key in messages */
    bool seen[CONF_KEYS_MAX]; /* by row: a key given twice is a mistake */
    bool seen_experts;
};

/* Put the place before the message. */
static enum err_code at_mark(const struct loader *l, yaml_mark_t mark, struct err *e)
{
    return err_wrap(e, "%s: line %zu, column %zu", l->file, mark.line + 1, mark.column + 1);
}

static enum err_code at(const struct loader *l, const yaml_node_t *node, struct err *e)
{
    return at_mark(l, node->start_mark, e);
}

static const char *node_kind(const yaml_node_t *node)
{
    return node->type == YAML_MAPPING_NODE    ? "a mapping"
           : node->type == YAML_SEQUENCE_NODE ? "a list"
                                              : "a single value";
}

static bool is_plain(const yaml_node_t *node)
{
    return node->type == YAML_SCALAR_NODE && node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
}

/* `key:` with nothing behind it, or an explicit null. */
static bool is_null(const yaml_node_t *node)
{
    if (!is_plain(node))
        return false;
    const char *text = (const char *)node->data.scalar.value;
    return strcmp(text, "") == 0 || strcmp(text, "~") == 0 || strcmp(text, "null") == 0;
}

/* The text of a scalar; NULL with an error if it has a NUL inside. */
static const char *scalar_text(const struct loader *l, const yaml_node_t *node, const char *shown,
                               struct err *e)
{
    const char *text = (const char *)node->data.scalar.value;
    if (strlen(text) == node->data.scalar.length)
        return text;
    err_set_param(e, ERR_INVALID, shown, "%s: the text has a NUL character", shown);
    at(l, node, e);
    return NULL;
}

/* ---- values ---- */

static enum err_code load_list(struct loader *l, const struct conf_key *key, void *base,
                               const char *shown, const yaml_node_t *node, struct err *e)
{
    if (is_null(node))
        return conf_value_set_list(key, base, shown, NULL, 0, e);
    if (node->type != YAML_SEQUENCE_NODE) {
        err_set_param(e, ERR_INVALID, shown, "%s: expects a list such as [a, b], not %s", shown,
                      node_kind(node));
        return at(l, node, e);
    }
    size_t count = (size_t)(node->data.sequence.items.top - node->data.sequence.items.start);
    char **items = mem_array(count, sizeof(*items));
    enum err_code rc = ERR_OK;
    for (size_t i = 0; i < count && rc == ERR_OK; i++) {
        const yaml_node_t *item =
            yaml_document_get_node(&l->doc, node->data.sequence.items.start[i]);
        if (item->type != YAML_SCALAR_NODE || is_null(item)) {
            rc = err_set_param(e, ERR_INVALID, shown, "%s: item %zu of the list is not a text",
                               shown, i + 1);
            at(l, item, e);
        } else if ((items[i] = (char *)scalar_text(l, item, shown, e)) == NULL) {
            rc = ERR_INVALID;
        }
    }
    if (rc == ERR_OK && (rc = conf_value_set_list(key, base, shown, items, count, e)) != ERR_OK)
        at(l, node, e);
    free(items);
    return rc;
}

static bool is_text_kind(enum conf_kind kind)
{
    return kind == CONF_KIND_TEXT || kind == CONF_KIND_PATH || kind == CONF_KIND_CHOICE ||
           kind == CONF_KIND_BYTES;
}

static enum err_code load_value(struct loader *l, const struct conf_key *key, void *base,
                                const char *shown, const yaml_node_t *node, struct err *e)
{
    if (key->kind == CONF_KIND_LIST)
        return load_list(l, key, base, shown, node, e);
    char type[160];
    conf_value_type(key, type, sizeof(type));
    if (node->type != YAML_SCALAR_NODE) {
        err_set_param(e, ERR_INVALID, shown, "%s: expects %s, not %s", shown, type,
                      node_kind(node));
        return at(l, node, e);
    }
    if (is_null(node)) {
        err_set_param(e, ERR_INVALID, shown,
                      "%s: has no value; remove the line to keep the default", shown);
        return at(l, node, e);
    }
    if (!is_plain(node) && !is_text_kind(key->kind)) {
        err_set_param(e, ERR_INVALID, shown, "%s: expects %s, not a quoted text", shown, type);
        return at(l, node, e);
    }
    const char *text = scalar_text(l, node, shown, e);
    if (text == NULL)
        return ERR_INVALID;
    enum err_code rc = conf_value_set(key, base, shown, text, l->dir, e);
    if (rc != ERR_OK)
        at(l, node, e);
    return rc;
}

/* ---- mappings ---- */

static enum err_code load_experts(struct loader *l, const yaml_node_t *node, struct err *e);

static enum err_code unknown_key(struct loader *l, struct scope *s, const char *path,
                                 const yaml_node_t *node, struct err *e)
{
    char shown[2 * PATH_BYTES];
    (void)snprintf(shown, sizeof(shown), "%s%s", s->shown, path);
    const char *near = conf_key_nearest(s->keys, s->keys_count, path);
    if (near != NULL)
        err_set_param(e, ERR_INVALID, shown, "unknown key '%s': did you mean '%s%s'?", shown,
                      s->shown, near);
    else
        err_set_param(e, ERR_INVALID, shown,
                      "unknown key '%s'; `switchyard check --help` lists the keys", shown);
    return at(l, node, e);
}

static enum err_code twice(struct loader *l, const char *shown, const yaml_node_t *node,
                           struct err *e)
{
    err_set_param(e, ERR_INVALID, shown, "%s: is given twice", shown);
    return at(l, node, e);
}

static enum err_code load_mapping(struct loader *l, struct scope *s, const char *prefix,
                                  const yaml_node_t *node, struct err *e);

static enum err_code load_pair(struct loader *l, struct scope *s, const char *prefix,
                               const yaml_node_t *name, const yaml_node_t *value, struct err *e)
{
    char path[PATH_BYTES], shown[2 * PATH_BYTES];
    if (name->type != YAML_SCALAR_NODE) {
        err_set(e, ERR_INVALID, "a key must be a plain word, not %s", node_kind(name));
        return at(l, name, e);
    }
    (void)snprintf(path, sizeof(path), "%s%s%.64s", prefix, prefix[0] != '\0' ? "." : "",
                   (const char *)name->data.scalar.value);
    (void)snprintf(shown, sizeof(shown), "%s%s", s->shown, path);
    const struct conf_key *key = conf_key_find(s->keys, s->keys_count, path);
    if (key != NULL) {
        size_t row = (size_t)(key - s->keys);
        if (s->seen[row])
            return twice(l, shown, name, e);
        s->seen[row] = true;
        return load_value(l, key, s->base, shown, value, e);
    }
    if (s->base == l->conf && strcmp(path, "experts") == 0) {
        if (s->seen_experts)
            return twice(l, shown, name, e);
        s->seen_experts = true;
        return load_experts(l, value, e);
    }
    if (!conf_key_is_section(s->keys, s->keys_count, path))
        return unknown_key(l, s, path, name, e);
    if (is_null(value))
        return ERR_OK; /* a section whose keys are all commented out */
    if (value->type != YAML_MAPPING_NODE) {
        err_set_param(e, ERR_INVALID, shown, "%s: expects keys below it, not %s", shown,
                      node_kind(value));
        return at(l, value, e);
    }
    return load_mapping(l, s, path, value, e);
}

/* Recursion follows the dots of the table's names: one level deep. */
static enum err_code load_mapping(struct loader *l, struct scope *s, const char *prefix,
                                  const yaml_node_t *node, struct err *e)
{
    const yaml_node_pair_t *pair = node->data.mapping.pairs.start;
    for (; pair < node->data.mapping.pairs.top; pair++) {
        enum err_code rc = load_pair(l, s, prefix, yaml_document_get_node(&l->doc, pair->key),
                                     yaml_document_get_node(&l->doc, pair->value), e);
        if (rc != ERR_OK)
            return rc;
    }
    return ERR_OK;
}

static enum err_code load_expert(struct loader *l, size_t index, const yaml_node_t *node,
                                 struct conf_expert *x, struct err *e)
{
    struct scope s = {.keys = conf_expert_keys, .keys_count = conf_expert_keys_count, .base = x};
    (void)snprintf(s.shown, sizeof(s.shown), "experts[%zu]", index);
    if (node->type != YAML_MAPPING_NODE) {
        err_set_param(e, ERR_INVALID, s.shown, "%s: expects keys such as `name: poet`, not %s",
                      s.shown, node_kind(node));
        return at(l, node, e);
    }
    (void)snprintf(s.shown, sizeof(s.shown), "experts[%zu].", index);
    enum err_code rc = load_mapping(l, &s, "", node, e);
    if (rc == ERR_OK && x->name[0] == '\0') {
        rc = err_set_param(e, ERR_INVALID, s.shown, "experts[%zu]: has no name", index);
        at(l, node, e);
    }
    return rc;
}

static void drop_experts(struct conf *c)
{
    for (size_t i = 0; i < c->experts_count; i++)
        conf_expert_done(&c->experts[i]);
    free(c->experts);
    c->experts = NULL;
    c->experts_count = 0;
}

/* The list in the file replaces the one before it. */
static enum err_code load_experts(struct loader *l, const yaml_node_t *node, struct err *e)
{
    drop_experts(l->conf);
    if (is_null(node))
        return ERR_OK;
    if (node->type != YAML_SEQUENCE_NODE) {
        err_set_param(e, ERR_INVALID, "experts", "experts: expects a list of experts, not %s",
                      node_kind(node));
        return at(l, node, e);
    }
    size_t count = (size_t)(node->data.sequence.items.top - node->data.sequence.items.start);
    if (count > EXPERTS_MAX) {
        err_set_param(e, ERR_INVALID, "experts", "experts: %zu are listed, at most %d are allowed",
                      count, EXPERTS_MAX);
        return at(l, node, e);
    }
    if (count > 0)
        l->conf->experts = mem_array(count, sizeof(*l->conf->experts));
    for (size_t i = 0; i < count; i++) {
        struct conf_expert *x = &l->conf->experts[i];
        conf_expert_init(x);
        l->conf->experts_count = i + 1;
        enum err_code rc = load_expert(
            l, i, yaml_document_get_node(&l->doc, node->data.sequence.items.start[i]), x, e);
        if (rc != ERR_OK)
            return rc;
    }
    return ERR_OK;
}

/* ---- the file ---- */

static enum err_code load_root(struct loader *l, struct err *e)
{
    const yaml_node_t *root = yaml_document_get_root_node(&l->doc);
    if (root == NULL || is_null(root))
        return ERR_OK; /* an empty file sets nothing */
    if (root->type != YAML_MAPPING_NODE) {
        err_set(e, ERR_INVALID, "the file must consist of keys such as `server:`, not of %s",
                node_kind(root));
        return at(l, root, e);
    }
    struct scope s = {.keys = conf_top_keys, .keys_count = conf_top_keys_count, .base = l->conf};
    return load_mapping(l, &s, "", root, e);
}

static enum err_code syntax_error(const struct loader *l, const yaml_parser_t *parser,
                                  struct err *e)
{
    if (parser->error == YAML_MEMORY_ERROR)
        return err_set(e, ERR_NO_MEMORY, "%s: no memory to parse it", l->file);
    const char *problem = parser->problem != NULL ? parser->problem : "not YAML";
    yaml_mark_t mark = parser->problem_mark;
    if (parser->error == YAML_READER_ERROR) {
        err_set(e, ERR_INVALID, "%s (byte %zu)", problem, parser->problem_offset);
        return err_wrap(e, "%s", l->file);
    }
    err_set(e, ERR_INVALID, "%s%s%s", problem, parser->context != NULL ? " " : "",
            parser->context != NULL ? parser->context : "");
    return at_mark(l, mark, e);
}

static enum err_code load_text(struct loader *l, const struct buf *text, struct err *e)
{
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return err_set(e, ERR_NO_MEMORY, "%s: no memory to parse it", l->file);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text->data, text->len);
    enum err_code rc;
    if (!yaml_parser_load(&parser, &l->doc)) {
        rc = syntax_error(l, &parser, e);
        yaml_parser_delete(&parser);
        return rc;
    }
    rc = load_root(l, e);
    yaml_document_delete(&l->doc);
    if (rc == ERR_OK) {
        yaml_document_t more;
        if (!yaml_parser_load(&parser, &more)) {
            rc = syntax_error(l, &parser, e);
        } else {
            const yaml_node_t *root = yaml_document_get_root_node(&more);
            if (root != NULL) {
                rc = err_set(e, ERR_INVALID, "a second document begins; one is expected");
                at(l, root, e);
            }
            yaml_document_delete(&more);
        }
    }
    yaml_parser_delete(&parser);
    return rc;
}

static char *directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL)
        return mem_strdup(".");
    return mem_strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

/* Absolute, so that a later change of the working directory moves no path. */
static char *absolute_directory_of(const char *path)
{
    char *dir = directory_of(path);
    char *absolute = realpath(dir, NULL);
    if (absolute == NULL)
        return dir;
    free(dir);
    return absolute;
}

enum err_code conf_load_file(struct conf *c, const char *path, struct err *e)
{
    struct buf text = {0};
    enum err_code rc = file_read(path, FILE_BYTES_MAX, &text, e);
    if (rc != ERR_OK)
        return err_wrap(e, "configuration");
    struct conf next;
    conf_copy(&next, c);
    struct loader l = {.file = path, .dir = absolute_directory_of(path), .conf = &next};
    struct err cause = {0};
    rc = load_text(&l, &text, &cause);
    free(l.dir);
    buf_done(&text);
    if (rc != ERR_OK) {
        conf_done(&next);
        if (e != NULL)
            *e = cause;
        return rc;
    }
    conf_done(c);
    *c = next;
    return ERR_OK;
}
