/* Chips as data: reads a description from conf/chips. Every value stands with where it comes from, so
 * that a figure made of guesses can be told from one made of published numbers. The file is read with
 * libyaml's tree, whose nodes carry their line: a mistake is reported with file, line and key. */
#include "rdu/timing/timing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <yaml.h>

enum { CHIP_FILE_BYTES_MAX = 1 << 20 };

enum kind { KIND_SOCKETS, KIND_COUNT, KIND_BYTES, KIND_RATE, KIND_SECONDS, KIND_SHARE };

/* What a value of each kind may be. The bounds are far out: they catch a wrong unit, not an unusual
 * machine. */
static const struct {
    double least, most;
    bool whole;
    const char *what;
} kinds[] = {
    [KIND_SOCKETS] = {1, 16, true, "a whole number of sockets from 1 to 16"},
    [KIND_COUNT] = {1, 1e6, true, "a whole number from 1 to 1e6"},
    [KIND_BYTES] = {1024, 1e15, true, "a whole number of bytes from 1024 to 1e15"},
    [KIND_RATE] = {1e6, 1e18, false, "a rate per second from 1e6 to 1e18"},
    [KIND_SECONDS] = {0, 10, false, "seconds from 0 to 10"},
    [KIND_SHARE] = {1e-4, 1, false, "a share of a peak, above 0 and at most 1"},
};

static const struct field {
    const char *section, *key, *shown;
    size_t offset;
    enum kind kind;
    bool required;
} fields[] = {
#define FIELD(section, key, kind, required)                                                        \
    {#section, #key, #section "." #key, offsetof(struct rdu_chip, section##_##key), KIND_##kind,   \
     required},
    RDU_CHIP_FIELDS(FIELD)
#undef FIELD
};

static const char *const source_names[] = {
    [RDU_SOURCE_ABSENT] = "absent",
    [RDU_SOURCE_PUBLISHED] = "published",
    [RDU_SOURCE_INFERRED] = "inferred",
    [RDU_SOURCE_GUESS] = "guess",
};

const char *rdu_source_name(enum rdu_source s)
{
    return source_names[s];
}

const char *rdu_chip_key(enum rdu_chip_field f)
{
    return fields[f].shown;
}

double *rdu_chip_value(struct rdu_chip *c, enum rdu_chip_field f)
{
    return (double *)(void *)((char *)c + fields[f].offset);
}

/* ---- the tree ---- */

struct reader {
    const char *shown;
    yaml_document_t doc;
    struct rdu_chip *chip;
};

static enum err_code at(const struct reader *r, const yaml_node_t *node, struct err *e)
{
    return err_wrap(e, "%s: line %zu", r->shown, node->start_mark.line + 1);
}

static const yaml_node_t *node_of(struct reader *r, int id)
{
    return yaml_document_get_node(&r->doc, id);
}

/* NULL if it is not one plain or quoted value. */
static const char *text_of(const yaml_node_t *node)
{
    if (node->type != YAML_SCALAR_NODE)
        return NULL;
    const char *text = (const char *)node->data.scalar.value;
    return strlen(text) == node->data.scalar.length ? text : NULL;
}

static enum err_code wrong(const struct reader *r, const yaml_node_t *node, const char *key,
                           const char *want, struct err *e)
{
    const char *text = text_of(node);
    err_set_param(e, ERR_INVALID, key, "%s must be %s%s%.60s%s", key, want, text ? ", not '" : "",
                  text ? text : "", text ? "'" : "");
    return at(r, node, e);
}

static bool number_of(const yaml_node_t *node, double *ret)
{
    const char *text = text_of(node);
    char *end;
    if (text == NULL || *text == 0 || node->data.scalar.style != YAML_PLAIN_SCALAR_STYLE)
        return false;
    *ret = strtod(text, &end);
    return *end == 0 && isfinite(*ret);
}

static enum err_code read_value(struct reader *r, const struct field *f, const yaml_node_t *node,
                                struct err *e)
{
    double v;
    size_t i = (size_t)(f - fields);
    if (!number_of(node, &v) || v < kinds[f->kind].least || v > kinds[f->kind].most ||
        (kinds[f->kind].whole && v != floor(v)))
        return wrong(r, node, f->shown, kinds[f->kind].what, e);
    *rdu_chip_value(r->chip, (enum rdu_chip_field)i) = v;
    return ERR_OK;
}

static enum err_code read_source(struct reader *r, const struct field *f, const yaml_node_t *node,
                                 struct err *e)
{
    const char *text = text_of(node);
    for (size_t k = RDU_SOURCE_PUBLISHED; text && k < BASE_COUNT(source_names); k++) {
        if (strcmp(text, source_names[k]) != 0)
            continue;
        r->chip->note[f - fields].source = (enum rdu_source)k;
        return ERR_OK;
    }
    char key[96];
    snprintf(key, sizeof(key), "%s.source", f->shown);
    return wrong(r, node, key, "published, inferred or guess", e);
}

static enum err_code read_range(struct reader *r, const struct field *f, const yaml_node_t *node,
                                struct err *e)
{
    struct rdu_chip_note *note = &r->chip->note[f - fields];
    char key[96];
    snprintf(key, sizeof(key), "%s.range", f->shown);
    const yaml_node_item_t *item = node->data.sequence.items.start;
    if (node->type != YAML_SEQUENCE_NODE || node->data.sequence.items.top - item != 2 ||
        !number_of(node_of(r, item[0]), &note->least) ||
        !number_of(node_of(r, item[1]), &note->most) || note->least > note->most)
        return wrong(r, node, key, "two numbers, the lower one first", e);
    return ERR_OK;
}

static enum err_code read_from(struct reader *r, const struct field *f, const yaml_node_t *node,
                               struct err *e)
{
    const char *text = text_of(node);
    char key[96];
    snprintf(key, sizeof(key), "%s.from", f->shown);
    if (text == NULL || *text == 0)
        return wrong(r, node, key, "a text that says where the value comes from", e);
    snprintf(r->chip->note[f - fields].from, sizeof(r->chip->note[0].from), "%s", text);
    return ERR_OK;
}

/* {value: V, source: S, from: "...", range: [A, B]}; value, source and from must be there. */
static enum err_code read_field(struct reader *r, const struct field *f, const yaml_node_t *name,
                                const yaml_node_t *node, struct err *e)
{
    static const struct {
        const char *key;
        enum err_code (*read)(struct reader *, const struct field *, const yaml_node_t *,
                              struct err *);
    } parts[] = {
        {"value", read_value}, {"source", read_source}, {"from", read_from}, {"range", read_range}};
    unsigned seen = 0;
    if (r->chip->note[f - fields].line != 0) {
        err_set_param(e, ERR_INVALID, f->shown, "%s is given twice", f->shown);
        return at(r, name, e);
    }
    r->chip->note[f - fields].line = (uint32_t)name->start_mark.line + 1;
    if (node->type != YAML_MAPPING_NODE)
        return wrong(r, node, f->shown, "like {value: 1.0, source: guess, from: \"why\"}", e);
    const yaml_node_pair_t *pair = node->data.mapping.pairs.start;
    for (; pair < node->data.mapping.pairs.top; pair++) {
        const char *key = text_of(node_of(r, pair->key));
        size_t i = 0;
        while (i < BASE_COUNT(parts) && (key == NULL || strcmp(key, parts[i].key) != 0))
            i++;
        if (i == BASE_COUNT(parts) || (seen & 1u << i)) {
            err_set_param(e, ERR_INVALID, f->shown,
                          "%s has '%.40s' %s; it takes value, source, from and range", f->shown,
                          key ? key : "?", i == BASE_COUNT(parts) ? "in it" : "twice");
            return at(r, node_of(r, pair->key), e);
        }
        seen |= 1u << i;
        enum err_code code = parts[i].read(r, f, node_of(r, pair->value), e);
        if (code != ERR_OK)
            return code;
    }
    for (size_t i = 0; i < 3; i++) {
        if (seen & 1u << i)
            continue;
        err_set_param(e, ERR_INVALID, f->shown, "%s has no %s", f->shown, parts[i].key);
        return at(r, name, e);
    }
    return ERR_OK;
}

static enum err_code read_section(struct reader *r, const char *section, const yaml_node_t *node,
                                  struct err *e)
{
    if (node->type != YAML_MAPPING_NODE)
        return wrong(r, node, section, "keys with values below it", e);
    const yaml_node_pair_t *pair = node->data.mapping.pairs.start;
    for (; pair < node->data.mapping.pairs.top; pair++) {
        const yaml_node_t *name = node_of(r, pair->key);
        const char *key = text_of(name);
        size_t i = 0;
        while (i < BASE_COUNT(fields) && (key == NULL || strcmp(fields[i].section, section) != 0 ||
                                          strcmp(fields[i].key, key) != 0))
            i++;
        if (i == BASE_COUNT(fields)) {
            err_set_param(e, ERR_INVALID, section, "unknown key '%s.%.60s'", section,
                          key ? key : "?");
            return at(r, name, e);
        }
        enum err_code code = read_field(r, &fields[i], name, node_of(r, pair->value), e);
        if (code != ERR_OK)
            return code;
    }
    return ERR_OK;
}

static enum err_code read_word(struct reader *r, const char *key, const yaml_node_t *node, char *dst,
                               size_t cap, struct err *e)
{
    const char *text = text_of(node);
    if (text == NULL || *text == 0 || strlen(text) >= cap) {
        char want[48];
        snprintf(want, sizeof(want), "a text of 1 to %zu bytes", cap - 1);
        return wrong(r, node, key, want, e);
    }
    snprintf(dst, cap, "%s", text);
    return ERR_OK;
}

static enum err_code read_pair(struct reader *r, const yaml_node_t *name, const yaml_node_t *value,
                               struct err *e)
{
    const char *key = text_of(name);
    if (key && strcmp(key, "name") == 0)
        return read_word(r, "name", value, r->chip->name, sizeof(r->chip->name), e);
    if (key && strcmp(key, "title") == 0)
        return read_word(r, "title", value, r->chip->title, sizeof(r->chip->title), e);
    for (size_t i = 0; key && i < BASE_COUNT(fields); i++) {
        if (strcmp(fields[i].section, key) == 0)
            return read_section(r, fields[i].section, value, e);
    }
    err_set_param(e, ERR_INVALID, key ? key : "",
                  "unknown key '%.60s'; a chip has name, title, node, socket, efficiency and launch",
                  key ? key : "?");
    return at(r, name, e);
}

/* Each value alone is fine; together they must make a machine. */
static enum err_code check_whole(const struct reader *r, struct err *e)
{
    const struct rdu_chip *c = r->chip;
    if (c->name[0] == 0)
        return err_set_param(e, ERR_INVALID, "name", "%s: the chip has no name", r->shown);
    for (size_t i = 0; i < BASE_COUNT(fields); i++) {
        if (fields[i].required && c->note[i].line == 0)
            return err_set_param(e, ERR_INVALID, fields[i].shown, "%s: %s is missing", r->shown,
                                 fields[i].shown);
    }
    if (c->socket_sram_bytes >= c->socket_hbm_bytes)
        return err_set_param(e, ERR_INVALID, "socket.sram_bytes",
                             "%s: line %u: socket.sram_bytes must be less than socket.hbm_bytes",
                             r->shown, c->note[RDU_CHIP_socket_sram_bytes].line);
    if (c->launch_ho_s > c->launch_so_s)
        return err_set_param(
            e, ERR_INVALID, "launch.ho_s",
            "%s: line %u: launch.ho_s must not be more than launch.so_s: a launch from a static "
            "schedule does less than one that the host issues",
            r->shown, c->note[RDU_CHIP_launch_ho_s].line);
    return ERR_OK;
}

static enum err_code read_root(struct reader *r, struct err *e)
{
    const yaml_node_t *root = yaml_document_get_root_node(&r->doc);
    if (root == NULL || root->type != YAML_MAPPING_NODE)
        return err_set(e, ERR_INVALID, "%s: not a chip description: it has no keys", r->shown);
    const yaml_node_pair_t *pair = root->data.mapping.pairs.start;
    for (; pair < root->data.mapping.pairs.top; pair++) {
        enum err_code code = read_pair(r, node_of(r, pair->key), node_of(r, pair->value), e);
        if (code != ERR_OK)
            return code;
    }
    return check_whole(r, e);
}

enum err_code rdu_chip_parse(const char *text, size_t len, const char *shown, struct rdu_chip *ret,
                             struct err *e)
{
    struct rdu_chip chip = {0};
    struct reader r = {.shown = shown, .chip = &chip};
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return err_set(e, ERR_NO_MEMORY, "%s: no memory to parse it", shown);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, len);
    enum err_code code;
    if (!yaml_parser_load(&parser, &r.doc)) {
        code = err_set(e, ERR_INVALID, "%s: line %zu: %s", shown, parser.problem_mark.line + 1,
                       parser.problem ? parser.problem : "not YAML");
    } else {
        code = read_root(&r, e);
        yaml_document_delete(&r.doc);
    }
    yaml_parser_delete(&parser);
    if (code != ERR_OK)
        return code;
    snprintf(chip.origin, sizeof(chip.origin), "%s", shown);
    *ret = chip;
    return ERR_OK;
}

/* ---- finding it ---- */

static enum err_code load_file(const char *path, struct rdu_chip *ret, struct err *e)
{
    struct buf text = {0};
    enum err_code code = file_read(path, CHIP_FILE_BYTES_MAX, &text, e);
    if (code != ERR_OK)
        return err_wrap(e, "chip description");
    code = rdu_chip_parse(text.data ? text.data : "", text.len, path, ret, e);
    buf_done(&text);
    return code;
}

static enum err_code load_built_in(const char *name, struct rdu_chip *ret, struct err *e)
{
    struct buf known = {0};
    for (const struct timing_chip_text *t = timing_chip_texts; t->name != NULL; t++) {
        if (strcmp(t->name, name) == 0) {
            buf_done(&known);
            return rdu_chip_parse(t->text, strlen(t->text), "built in", ret, e);
        }
        buf_printf(&known, "%s%s", known.len ? ", " : "", t->name);
    }
    err_set(e, ERR_NOT_FOUND, "there is no chip '%.60s'; known are %s, or give the path of a file",
            name, known.data);
    buf_done(&known);
    return ERR_NOT_FOUND;
}

enum err_code rdu_chip_load(const char *name_or_path, struct rdu_chip *ret, struct err *e)
{
    size_t len = strlen(name_or_path);
    if (strchr(name_or_path, '/') || (len > 5 && strcmp(name_or_path + len - 5, ".yaml") == 0))
        return load_file(name_or_path, ret, e);
    const char *folder = getenv("SWITCHYARD_CHIPS");
    bool given = folder != NULL && *folder != 0;
    char *path = mem_format("%s/%s.yaml", given ? folder : "conf/chips", name_or_path);
    enum err_code code;
    if (given || access(path, R_OK) == 0)
        code = load_file(path, ret, e);
    else
        code = load_built_in(name_or_path, ret, e);
    free(path);
    return code;
}
