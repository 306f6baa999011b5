/* JSON Schema to rules: keywords that choose between schemas; what one type may be is in grammar_types.c.
 * Every schema object becomes one rule, found again by its address, so recursion through $ref is
 * recursion of rules. Everything generated is valid; not everything valid can be generated: members come
 * in order, none that is not named comes unless additionalProperties says so, numbers are of bounded
 * length. */
#include "experts/grammar_schema.h"

#include <stdlib.h>
#include <string.h>

/* ---- the path ---------------------------------------------------------------------------------- */

size_t schema_push(struct schema *s, const char *name)
{
    size_t len = s->path.len;
    buf_printf(&s->path, ".%s", name);
    return len;
}

void schema_pop(struct schema *s, size_t len)
{
    s->path.len = len;
    s->path.data[len] = 0;
}

enum err_code schema_wrong(struct schema *s, enum err_code code, const char *key, const char *fmt, ...)
{
    char why[300];
    va_list args;
    va_start(args, fmt);
    vsnprintf(why, sizeof why, fmt, args);
    va_end(args);
    size_t len = *key ? schema_push(s, key) : s->path.len;
    err_set_param(s->e, code, s->path.data, "'%s' %s", s->path.data, why);
    schema_pop(s, len);
    return code;
}

bool schema_spend(struct schema *s, uint64_t units)
{
    s->work += units;
    if (s->work > SCHEMA_WORK_MAX)
        schema_wrong(s, ERR_INVALID, "", "leads to too many combinations of schemas");
    return s->work <= SCHEMA_WORK_MAX;
}

enum err_code schema_count(struct schema *s, const json_t *schema, const char *key, uint32_t *ret)
{
    const json_t *v = json_object_get(schema, key);
    double d = json_number_value(v);
    if (v == NULL)
        return ERR_OK;
    if (!json_is_number(v) || d < 0 || d > 1e9 || d != (double)(uint32_t)d)
        return schema_wrong(s, ERR_INVALID, key, "must be a whole number between 0 and 1000000000");
    *ret = (uint32_t)d;
    return ERR_OK;
}

/* ---- one rule per schema -------------------------------------------------------------------------- */

static size_t memo_slot(const struct schema *s, const json_t *schema)
{
    size_t at = hash64_of(&schema, sizeof schema, 0) & (s->memo_cap - 1);
    while (s->memo[at].schema != NULL && s->memo[at].schema != schema)
        at = (at + 1) & (s->memo_cap - 1);
    return at;
}

static void memo_put(struct schema *s, const json_t *schema, uint32_t rule)
{
    if (2 * (s->memo_count + 1) > s->memo_cap) {
        struct schema_memo *old = s->memo;
        size_t old_cap = s->memo_cap;
        s->memo_cap = old_cap ? 2 * old_cap : 256;
        s->memo = mem_array(s->memo_cap, sizeof *s->memo);
        for (size_t i = 0; i < old_cap; i++)
            if (old[i].schema != NULL)
                s->memo[memo_slot(s, old[i].schema)] = old[i];
        free(old);
    }
    s->memo[memo_slot(s, schema)] = (struct schema_memo){schema, rule};
    s->memo_count++;
}

static enum err_code emit(struct schema *s, json_t *schema, uint32_t *ret);

enum err_code schema_rule(struct schema *s, json_t *schema, uint32_t *ret)
{
    if (json_is_true(schema) || (json_is_object(schema) && json_object_size(schema) == 0)) {
        *ret = gb_json(&s->build, GJSON_VALUE);
        return ERR_OK;
    }
    if (json_is_false(schema)) {
        *ret = gb_rule(&s->build); /* a new rule has no way through */
        return ERR_OK;
    }
    if (!json_is_object(schema))
        return schema_wrong(s, ERR_INVALID, "", "must be a schema: an object or a boolean");
    if (s->memo_cap > 0 && s->memo[memo_slot(s, schema)].schema != NULL) {
        *ret = s->memo[memo_slot(s, schema)].rule;
        return ERR_OK;
    }
    if (s->depth >= GRAMMAR_NEST_MAX)
        return schema_wrong(s, ERR_INVALID, "", "is nested deeper than %u schemas", GRAMMAR_NEST_MAX);
    if (s->work > SCHEMA_WORK_MAX)
        return s->e->code;
    if (s->build.full)
        return ERR_OK; /* gb_finish says so */
    uint32_t rule = gb_rule(&s->build), entry = GNODE_IDX_FAIL;
    memo_put(s, schema, rule);
    s->depth++;
    enum err_code code = emit(s, schema, &entry);
    s->depth--;
    if (code == ERR_OK)
        gb_rule_set(&s->build, rule, entry);
    *ret = rule;
    return code;
}

static enum err_code emit_call(struct schema *s, json_t *schema, uint32_t *ret)
{
    uint32_t rule = 0;
    enum err_code code = schema_rule(s, schema, &rule);
    if (code == ERR_OK && !s->build.full)
        *ret = gb_call(&s->build, rule, GNODE_IDX_END);
    return code;
}

/* ---- keywords ---------------------------------------------------------------------------------------- */

static enum err_code check_keywords(struct schema *s, json_t *schema)
{
    static const char *const done[] = {
        "type", "enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems",
        "minItems", "maxItems", "minLength", "maxLength", "pattern", "format", "minimum", "maximum",
        "exclusiveMinimum", "exclusiveMaximum", "anyOf", "oneOf", "allOf", "$ref", "nullable"};
    const char *key;
    json_t *v;
    json_object_foreach(schema, key, v)
    {
        bool known = schema_is_annotation(key);
        for (size_t i = 0; i < BASE_COUNT(done) && !known; i++)
            known = strcmp(key, done[i]) == 0;
        if (strcmp(key, "uniqueItems") == 0 && json_is_false(v))
            known = true;
        if (!known)
            return schema_wrong(s, ERR_UNSUPPORTED, key, "is not supported in a schema");
    }
    return ERR_OK;
}

/* The schema without one keyword; NULL if nothing but annotations is left. */
static json_t *rest_of(struct schema *s, json_t *schema, const char *but)
{
    bool something = false;
    const char *key;
    json_t *v, *out = json_object();
    schema_spend(s, 20 + SCHEMA_WORK_COPY * json_object_size(schema)); /* schema_rule looks at it */
    json_object_foreach(schema, key, v)
    {
        if (strcmp(key, but) == 0 || schema_is_annotation(key))
            continue;
        something = true;
        json_object_set(out, key, v);
    }
    json_array_append_new(s->made, out);
    return something ? out : NULL;
}

/* ---- $ref ------------------------------------------------------------------------------------------------ */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

/* One step of a JSON pointer: ~0, ~1 and percent escapes undone. Returns what follows. */
static const char *pointer_step(const char *p, struct buf *name)
{
    buf_clear(name);
    buf_append(name, "", 0);
    for (; *p != 0 && *p != '/'; p++) {
        char c = *p;
        if (c == '%' && hex_digit(p[1]) >= 0 && hex_digit(p[2]) >= 0) {
            c = (char)(hex_digit(p[1]) * 16 + hex_digit(p[2]));
            p += 2;
        } else if (c == '~' && (p[1] == '0' || p[1] == '1')) {
            c = *++p == '0' ? '~' : '/';
        }
        buf_append(name, &c, 1);
    }
    return p;
}

static json_t *resolve(const struct schema *s, const char *ref)
{
    struct buf name = {0};
    json_t *at = s->root;
    const char *p = ref + 1;
    while (at != NULL && *p == '/') {
        char *end;
        p = pointer_step(p + 1, &name);
        if (json_is_array(at)) {
            unsigned long i = strtoul(name.data ? name.data : "", &end, 10);
            at = json_array_get(at, i);
        } else {
            at = json_object_get(at, name.data ? name.data : "");
        }
    }
    if (*p != 0)
        at = NULL;
    buf_done(&name);
    return at;
}

/* What a $ref stands for, and what stands beside it (NULL = nothing). */
static enum err_code follow(struct schema *s, json_t *schema, json_t **ret_target, json_t **ret_rest)
{
    const char *text = json_string_value(json_object_get(schema, "$ref"));
    if (text == NULL)
        return schema_wrong(s, ERR_INVALID, "$ref", "must be a string");
    if (text[0] != '#')
        return schema_wrong(s, ERR_UNSUPPORTED, "$ref", "must begin with '#': other documents are not read");
    *ret_target = resolve(s, text);
    *ret_rest = rest_of(s, schema, "$ref");
    if (*ret_target != NULL)
        return ERR_OK;
    return schema_wrong(s, text[1] == 0 || text[1] == '/' ? ERR_INVALID : ERR_UNSUPPORTED, "$ref",
                        "points to nothing in the schema: '%.80s'", text);
}

enum err_code schema_inline(struct schema *s, json_t *schema, json_t **ret)
{
    json_t *rest;
    for (unsigned i = 0; json_object_get(schema, "$ref") != NULL; i++) {
        enum err_code code = i < GRAMMAR_NEST_MAX ? follow(s, schema, &schema, &rest)
                                                  : schema_wrong(s, ERR_INVALID, "$ref", "leads in a circle");
        if (code == ERR_OK && rest != NULL)
            code = schema_merge(s, schema, rest, &schema);
        if (code != ERR_OK)
            return code;
    }
    *ret = schema;
    return ERR_OK;
}

static enum err_code emit_ref(struct schema *s, json_t *schema, uint32_t *ret)
{
    json_t *target, *rest;
    enum err_code code = follow(s, schema, &target, &rest);
    if (code == ERR_OK && rest != NULL)
        code = schema_merge(s, target, rest, &target);
    return code == ERR_OK ? emit_call(s, target, ret) : code;
}

/* ---- combinations ------------------------------------------------------------------------------------------ */

static enum err_code emit_all(struct schema *s, json_t *schema, json_t *list, uint32_t *ret)
{
    json_t *merged = rest_of(s, schema, "allOf");
    if (!json_is_array(list) || json_array_size(list) == 0)
        return schema_wrong(s, ERR_INVALID, "allOf", "must be a list of schemas");
    if (merged == NULL)
        merged = json_array_get(list, 0);
    else if (schema_merge(s, merged, json_array_get(list, 0), &merged) != ERR_OK)
        return s->e->code;
    for (size_t i = 1; i < json_array_size(list); i++)
        if (schema_merge(s, merged, json_array_get(list, i), &merged) != ERR_OK)
            return s->e->code;
    return emit_call(s, merged, ret);
}

static enum err_code emit_any(struct schema *s, json_t *schema, const char *key, uint32_t *ret)
{
    json_t *list = json_object_get(schema, key), *rest = rest_of(s, schema, key);
    if (!json_is_array(list) || json_array_size(list) == 0)
        return schema_wrong(s, ERR_INVALID, key, "must be a list of schemas");
    uint32_t out = GNODE_IDX_FAIL;
    for (size_t i = 0; i < json_array_size(list); i++) {
        char name[48];
        uint32_t one = GNODE_IDX_FAIL;
        json_t *branch = json_array_get(list, i);
        snprintf(name, sizeof name, "%s[%zu]", key, i);
        size_t len = schema_push(s, name);
        enum err_code code = rest != NULL ? schema_merge(s, rest, branch, &branch) : ERR_OK;
        if (code == ERR_OK)
            code = emit_call(s, branch, &one);
        if (code != ERR_OK)
            return code;
        schema_pop(s, len);
        out = gb_split(&s->build, out, one);
    }
    *ret = out;
    return ERR_OK;
}

/* Branches that one value could meet are refused by name: see grammar_oneof.c. */
static enum err_code emit_one(struct schema *s, json_t *schema, uint32_t *ret)
{
    json_t *list = json_object_get(schema, "oneOf");
    enum err_code code = emit_any(s, schema, "oneOf", ret);
    for (size_t i = 0; code == ERR_OK && i < json_array_size(list); i++)
        for (size_t k = 0; code == ERR_OK && k < i; k++)
            if (!schema_are_apart(s, json_array_get(list, k), json_array_get(list, i)))
                code = schema_wrong(s, ERR_UNSUPPORTED, "oneOf",
                                    "has branches (%zu and %zu) that one value might meet; use anyOf, or "
                                    "tell them apart by type, by fixed values or by a required member",
                                    k, i);
    return code;
}

static enum err_code emit_nullable(struct schema *s, json_t *schema, uint32_t *ret)
{
    json_t *rest = rest_of(s, schema, "nullable");
    uint32_t value = gb_json(&s->build, GJSON_VALUE);
    if (rest == NULL) {
        *ret = gb_call(&s->build, value, GNODE_IDX_END);
        return ERR_OK;
    }
    enum err_code code = emit_call(s, rest, ret);
    if (code == ERR_OK)
        *ret = gb_split(&s->build, *ret, gb_text(&s->build, "null", 4, GNODE_IDX_END));
    return code;
}

/* ---- types ---------------------------------------------------------------------------------------------------- */

static const char *const kind_name[SCHEMA_KINDS] = {"object", "array", "string", "integer", "number", "boolean",
                                             "null"};
#define ALL_KINDS ((1U << SCHEMA_KINDS) - 1)

static bool add_kind(const json_t *v, unsigned *kinds)
{
    const char *name = json_string_value(v);
    for (unsigned i = 0; name != NULL && i < SCHEMA_KINDS; i++)
        if (strcmp(name, kind_name[i]) == 0) {
            *kinds |= 1U << i;
            return true;
        }
    return false;
}

/* Without `type` the keywords say which type is meant; the others would be valid too, but nobody who
 * writes `properties` wants a number. */
static unsigned implied_kinds(const json_t *schema)
{
    static const struct {
        const char *key;
        unsigned kind;
    } hint[] = {
        {"properties", SCHEMA_OBJECT}, {"required", SCHEMA_OBJECT}, {"additionalProperties", SCHEMA_OBJECT},
        {"items", SCHEMA_ARRAY}, {"prefixItems", SCHEMA_ARRAY}, {"minItems", SCHEMA_ARRAY},
        {"maxItems", SCHEMA_ARRAY}, {"minLength", SCHEMA_STRING}, {"maxLength", SCHEMA_STRING},
        {"pattern", SCHEMA_STRING}, {"format", SCHEMA_STRING}, {"minimum", SCHEMA_NUMBER},
        {"maximum", SCHEMA_NUMBER}, {"exclusiveMinimum", SCHEMA_NUMBER}, {"exclusiveMaximum", SCHEMA_NUMBER},
    };
    unsigned kinds = 0;
    for (size_t i = 0; i < BASE_COUNT(hint); i++)
        if (json_object_get(schema, hint[i].key) != NULL)
            kinds |= 1U << hint[i].kind;
    return kinds ? kinds : ALL_KINDS;
}

static enum err_code read_kinds(struct schema *s, const json_t *schema, unsigned *ret)
{
    const json_t *type = json_object_get(schema, "type");
    unsigned kinds = 0;
    bool ok = true;
    if (type == NULL) {
        *ret = implied_kinds(schema);
        return ERR_OK;
    }
    if (json_is_array(type)) {
        for (size_t i = 0; i < json_array_size(type); i++)
            ok &= add_kind(json_array_get(type, i), &kinds);
    } else {
        ok = add_kind(type, &kinds);
    }
    if (!ok)
        return schema_wrong(s, ERR_INVALID, "type", "must be one of object, array, string, integer, number, "
                                                    "boolean, null, or a list of these");
    *ret = kinds;
    return ERR_OK;
}

unsigned schema_valid_kinds(const json_t *schema)
{
    const json_t *type = json_object_get(schema, "type");
    unsigned kinds = json_is_true(json_object_get(schema, "nullable")) ? 1U << SCHEMA_NULL : 0;
    bool ok = type != NULL;
    if (json_is_array(type)) {
        for (size_t i = 0; i < json_array_size(type); i++)
            ok &= add_kind(json_array_get(type, i), &kinds);
    } else {
        ok = ok && add_kind(type, &kinds);
    }
    if (kinds & 1U << SCHEMA_NUMBER)
        kinds |= 1U << SCHEMA_INTEGER;
    return ok ? kinds : ALL_KINDS;
}

unsigned schema_made_kinds(const json_t *schema)
{
    static const char *const inside[] = {"anyOf", "oneOf", "allOf"};
    for (size_t i = 0; i < BASE_COUNT(inside); i++)
        if (json_object_get(schema, inside[i]) != NULL)
            return schema_valid_kinds(schema);
    if (json_object_get(schema, "type") != NULL)
        return schema_valid_kinds(schema);
    unsigned kinds = implied_kinds(schema);
    if (json_is_true(json_object_get(schema, "nullable")))
        kinds |= 1U << SCHEMA_NULL;
    return kinds & 1U << SCHEMA_NUMBER ? kinds | 1U << SCHEMA_INTEGER : kinds;
}

static enum err_code emit_kind(struct schema *s, json_t *schema, unsigned kind, uint32_t *ret)
{
    struct gbuild *b = &s->build;
    uint32_t end = GNODE_IDX_END;
    switch ((enum schema_kind)kind) {
    case SCHEMA_OBJECT:
        return schema_object(s, schema, end, ret);
    case SCHEMA_ARRAY:
        return schema_array(s, schema, end, ret);
    case SCHEMA_STRING:
        return schema_string(s, schema, end, ret);
    case SCHEMA_INTEGER:
    case SCHEMA_NUMBER:
        return schema_number(s, schema, kind == SCHEMA_INTEGER, end, ret);
    case SCHEMA_BOOLEAN:
        *ret = gb_split(b, gb_text(b, "true", 4, end), gb_text(b, "false", 5, end));
        return ERR_OK;
    default:
        *ret = gb_text(b, "null", 4, end);
        return ERR_OK;
    }
}

static enum err_code emit_kinds(struct schema *s, json_t *schema, unsigned kinds, uint32_t *ret)
{
    uint32_t out = GNODE_IDX_FAIL;
    if (kinds & 1U << SCHEMA_NUMBER)
        kinds &= ~(1U << SCHEMA_INTEGER);
    for (unsigned i = 0; i < SCHEMA_KINDS; i++) {
        uint32_t one = GNODE_IDX_FAIL;
        if (!(kinds & 1U << i))
            continue;
        enum err_code code = emit_kind(s, schema, i, &one);
        if (code != ERR_OK)
            return code;
        out = gb_split(&s->build, out, one);
    }
    *ret = out;
    return ERR_OK;
}

/* ---- enum and const --------------------------------------------------------------------------------------------- */

bool schema_value_is(const json_t *v, unsigned kinds)
{
    unsigned kind = SCHEMA_NULL;
    if (json_is_object(v))
        kind = SCHEMA_OBJECT;
    else if (json_is_array(v))
        kind = SCHEMA_ARRAY;
    else if (json_is_string(v))
        kind = SCHEMA_STRING;
    else if (json_is_boolean(v))
        kind = SCHEMA_BOOLEAN;
    else if (json_is_number(v))
        kind = SCHEMA_NUMBER;
    double number = json_number_value(v);
    bool whole = json_is_integer(v) || (number > -1e18 && number < 1e18 && number == (double)(int64_t)number);
    return (kinds & 1U << kind) != 0 || (kind == SCHEMA_NUMBER && whole && (kinds & 1U << SCHEMA_INTEGER));
}

static void add_value(struct gbuild *b, const json_t *v, uint32_t *out)
{
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    if (text != NULL)
        *out = gb_split(b, *out, gb_text(b, text, strlen(text), GNODE_IDX_END));
    free(text);
}

static enum err_code emit_values(struct schema *s, json_t *schema, uint32_t *ret)
{
    static const char *const may_stand[] = {"type", "enum", "const"};
    json_t *list = json_object_get(schema, "enum"), *only = json_object_get(schema, "const"), *v;
    const char *key;
    unsigned kinds = ALL_KINDS;
    json_object_foreach(schema, key, v)
    {
        bool fine = schema_is_annotation(key);
        for (size_t i = 0; i < BASE_COUNT(may_stand) && !fine; i++)
            fine = strcmp(key, may_stand[i]) == 0;
        if (!fine)
            return schema_wrong(s, ERR_UNSUPPORTED, key, "beside enum or const is not supported");
    }
    enum err_code code = json_object_get(schema, "type") ? read_kinds(s, schema, &kinds) : ERR_OK;
    if (code != ERR_OK)
        return code;
    if (list != NULL && !json_is_array(list))
        return schema_wrong(s, ERR_INVALID, "enum", "must be a list of values");
    uint32_t out = GNODE_IDX_FAIL;
    if (list == NULL && schema_value_is(only, kinds))
        add_value(&s->build, only, &out);
    for (size_t i = 0; i < json_array_size(list); i++) {
        v = json_array_get(list, i);
        if (schema_value_is(v, kinds) && (only == NULL || json_equal(only, v)))
            add_value(&s->build, v, &out);
    }
    *ret = out;
    return ERR_OK;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------ */

static enum err_code emit(struct schema *s, json_t *schema, uint32_t *ret)
{
    unsigned kinds = 0;
    json_t *ref = json_object_get(schema, "$ref"), *all = json_object_get(schema, "allOf");
    json_t *nullable = json_object_get(schema, "nullable");
    enum err_code code = check_keywords(s, schema);
    if (code != ERR_OK)
        return code;
    if (nullable != NULL && !json_is_boolean(nullable))
        return schema_wrong(s, ERR_INVALID, "nullable", "must be a boolean");
    if (json_is_true(nullable))
        return emit_nullable(s, schema, ret);
    if (ref != NULL)
        return emit_ref(s, schema, ret);
    if (all != NULL)
        return emit_all(s, schema, all, ret);
    if (json_object_get(schema, "anyOf") != NULL)
        return emit_any(s, schema, "anyOf", ret);
    if (json_object_get(schema, "oneOf") != NULL)
        return emit_one(s, schema, ret);
    if (json_object_get(schema, "enum") != NULL || json_object_get(schema, "const") != NULL)
        return emit_values(s, schema, ret);
    code = read_kinds(s, schema, &kinds);
    return code == ERR_OK ? emit_kinds(s, schema, kinds, ret) : code;
}

static enum err_code compile(struct schema *s, const char *param, struct grammar **ret)
{
    uint32_t root = 0;
    enum err_code code = schema_rule(s, s->root, &root);
    if (code == ERR_OK)
        code = gb_finish(&s->build, root, param, ret, s->e);
    return code;
}

enum err_code grammar_compile_schema(const char *json, size_t len, const char *param, struct grammar **ret,
                                     struct err *e)
{
    struct err mine = {0};
    json_error_t where;
    struct schema s = {.e = &mine};
    if (len > GRAMMAR_TEXT_MAX)
        return err_set_param(e, ERR_INVALID, param, "'%s' has %zu bytes; the limit is %zu", param, len,
                             GRAMMAR_TEXT_MAX);
    s.root = json_loadb(json, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &where);
    if (s.root == NULL)
        return err_set_param(e, ERR_INVALID, param, "'%s' is not JSON: %s", param, where.text);
    gb_init(&s.build);
    s.made = json_array();
    buf_puts(&s.path, param);
    enum err_code code = compile(&s, param, ret);
    gb_done(&s.build);
    json_decref(s.made);
    json_decref(s.root);
    buf_done(&s.path);
    free(s.memo);
    if (code != ERR_OK && e != NULL)
        *e = mine;
    return code;
}
