/* What one type of value may be under a schema: strings, numbers, arrays, objects. */
#include "experts/grammar_schema.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- strings ------------------------------------------------------------------------------- */

static const char *format_pattern(const char *name)
{
#define DATE "[12]\\d{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|" \
             "02-(?:0[1-9]|1\\d|2[0-8]))"
#define TIME "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,6})?(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)"
    static const struct {
        const char *name, *pattern;
    } known[] = {
        {"date", "^" DATE "$"},
        {"time", "^" TIME "$"},
        {"date-time", "^" DATE "T" TIME "$"},
        {"uuid", "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"},
        {"email", "^[A-Za-z0-9_+-]{1,32}(?:\\.[A-Za-z0-9_+-]{1,16}){0,2}@(?:[A-Za-z0-9]"
                  "(?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?\\.){1,3}[A-Za-z]{2,8}$"},
        {"ipv4", "^(?:(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)\\.){3}(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)$"},
    };
    for (size_t i = 0; i < BASE_COUNT(known); i++)
        if (strcmp(name, known[i].name) == 0)
            return known[i].pattern;
    return NULL;
}

static enum err_code by_pattern(struct schema *s, const json_t *schema, const char *key, const char *pattern,
                                size_t len, uint32_t next, uint32_t *ret)
{
    static const char *const others[] = {"pattern", "format", "minLength", "maxLength"};
    for (size_t i = 0; i < BASE_COUNT(others); i++)
        if (strcmp(key, others[i]) != 0 && json_object_get(schema, others[i]) != NULL)
            return schema_wrong(s, ERR_UNSUPPORTED, others[i], "together with %s is not supported", key);
    struct gbuild *b = &s->build;
    uint32_t inside = GNODE_IDX_FAIL;
    size_t path = schema_push(s, key);
    enum err_code code = gb_pattern(b, pattern, len, gb_byte(b, '"', '"', next), s->path.data, &inside, s->e);
    schema_pop(s, path);
    *ret = gb_byte(b, '"', '"', inside);
    return code;
}

enum err_code schema_string(struct schema *s, json_t *schema, uint32_t next, uint32_t *ret)
{
    struct gbuild *b = &s->build;
    const json_t *pattern = json_object_get(schema, "pattern"), *format = json_object_get(schema, "format");
    uint32_t min = 0, max = UINT32_MAX;
    if (pattern != NULL) {
        if (!json_is_string(pattern))
            return schema_wrong(s, ERR_INVALID, "pattern", "must be a string");
        return by_pattern(s, schema, "pattern", json_string_value(pattern), json_string_length(pattern), next,
                          ret);
    }
    if (format != NULL) {
        const char *known = json_is_string(format) ? format_pattern(json_string_value(format)) : NULL;
        if (known == NULL)
            return schema_wrong(s, ERR_UNSUPPORTED, "format", "must be one of date, time, date-time, uuid, "
                                                              "email, ipv4");
        return by_pattern(s, schema, "format", known, strlen(known), next, ret);
    }
    enum err_code code = schema_count(s, schema, "minLength", &min);
    if (code == ERR_OK)
        code = schema_count(s, schema, "maxLength", &max);
    if (code != ERR_OK)
        return code;
    if (min == 0 && max == UINT32_MAX)
        *ret = gb_call(b, gb_json(b, GJSON_STRING), next);
    else
        *ret = gb_byte(b, '"', '"', gb_repeat(b, gb_json(b, GJSON_CHAR), min, max, gb_byte(b, '"', '"', next)));
    return ERR_OK;
}

/* ---- numbers --------------------------------------------------------------------------------- */

#define WHOLE_MAX 999999999999999999LL /* 18 digits */
#define DECIMAL_MAX 1e9
#define POINT_MAX 6U

struct bounds {
    bool lo_given, hi_given, lo_open, hi_open; /* open: the bound itself is out */
    double lo, hi;
    int64_t lo_whole, hi_whole;   /* the same where they are exact integers */
    bool lo_exact, hi_exact;
};

static enum err_code read_bound(struct schema *s, const json_t *schema, const char *key, bool lower, bool open,
                                struct bounds *to)
{
    const json_t *v = json_object_get(schema, key);
    double d = json_number_value(v);
    if (v == NULL)
        return ERR_OK;
    if (!json_is_number(v) || !isfinite(d))
        return schema_wrong(s, ERR_INVALID, key, "must be a number");
    bool exact = json_is_integer(v) || (fabs(d) < 1e15 && d == floor(d));
    int64_t whole = json_is_integer(v) ? json_integer_value(v) : exact ? (int64_t)d : 0;
    if (lower && (!to->lo_given || d > to->lo || (d >= to->lo && open))) {
        to->lo_given = true;
        to->lo = d;
        to->lo_open = open;
        to->lo_whole = whole;
        to->lo_exact = exact;
    } else if (!lower && (!to->hi_given || d < to->hi || (d <= to->hi && open))) {
        to->hi_given = true;
        to->hi = d;
        to->hi_open = open;
        to->hi_whole = whole;
        to->hi_exact = exact;
    }
    return ERR_OK;
}

static enum err_code read_bounds(struct schema *s, const json_t *schema, struct bounds *ret)
{
    static const struct {
        const char *key;
        bool lower, open;
    } keys[] = {{"minimum", true, false}, {"exclusiveMinimum", true, true},
                {"maximum", false, false}, {"exclusiveMaximum", false, true}};
    enum err_code code = ERR_OK;
    *ret = (struct bounds){0};
    for (size_t i = 0; i < BASE_COUNT(keys) && code == ERR_OK; i++)
        code = read_bound(s, schema, keys[i].key, keys[i].lower, keys[i].open, ret);
    return code;
}

static enum err_code whole_range(struct schema *s, const struct bounds *w, uint32_t next, uint32_t *ret)
{
    int64_t lo = -WHOLE_MAX, hi = WHOLE_MAX;
    if ((w->lo_given && !w->lo_exact && fabs(w->lo) >= 1e15) || (w->hi_given && !w->hi_exact && fabs(w->hi) >= 1e15))
        return schema_wrong(s, ERR_UNSUPPORTED, w->lo_given && !w->lo_exact ? "minimum" : "maximum",
                            "must be written as an integer when it is this large");
    if (w->lo_given)
        lo = w->lo_exact ? w->lo_whole + (w->lo_open && w->lo_whole < INT64_MAX) : (int64_t)ceil(w->lo);
    if (w->hi_given)
        hi = w->hi_exact ? w->hi_whole - (w->hi_open && w->hi_whole > INT64_MIN) : (int64_t)floor(w->hi);
    if (!w->hi_given && lo > hi)
        hi = INT64_MAX;
    if (!w->lo_given && hi < lo)
        lo = INT64_MIN;
    *ret = gb_int_range(&s->build, lo, hi, next);
    return ERR_OK;
}

/* A bound in units of 10^-point, if it has no more decimals than that. */
static bool scale(double v, unsigned point, int64_t *ret)
{
    char text[64];
    double unit = pow(10, point), scaled = nearbyint(v * unit);
    snprintf(text, sizeof text, "%.*f", (int)point, v);
    *ret = (int64_t)scaled;
    return strtod(text, NULL) == v; /* the decimal text means exactly this double */
}

static enum err_code decimal_range(struct schema *s, const struct bounds *w, uint32_t next, uint32_t *ret)
{
    unsigned point = 1;
    int64_t lo = 0, hi = 0, most = (int64_t)DECIMAL_MAX;
    if ((w->lo_given && fabs(w->lo) > DECIMAL_MAX) || (w->hi_given && fabs(w->hi) > DECIMAL_MAX))
        return schema_wrong(s, ERR_UNSUPPORTED, w->lo_given && fabs(w->lo) > DECIMAL_MAX ? "minimum" : "maximum",
                            "of a number must be at most %.0f in magnitude", DECIMAL_MAX);
    while (point <= POINT_MAX && !((!w->lo_given || scale(w->lo, point, &lo)) &&
                                   (!w->hi_given || scale(w->hi, point, &hi))))
        point++;
    if (point > POINT_MAX)
        return schema_wrong(s, ERR_UNSUPPORTED, w->lo_given && !scale(w->lo, POINT_MAX, &lo) ? "minimum" : "maximum",
                            "of a number may have at most %u decimals", POINT_MAX);
    unsigned finer = w->lo_open || w->hi_open ? 2 : 0; /* what lies between an open bound and the next decimal */
    for (unsigned i = 0; i < point + finer; i++)
        most *= 10;
    for (unsigned i = 0; i < finer; i++) {
        lo *= 10;
        hi *= 10;
    }
    lo = w->lo_given ? lo + w->lo_open : -most;
    hi = w->hi_given ? hi - w->hi_open : most;
    *ret = gb_decimal_range(&s->build, lo, hi, point + finer, next);
    return ERR_OK;
}

enum err_code schema_number(struct schema *s, json_t *schema, bool whole, uint32_t next, uint32_t *ret)
{
    struct bounds w;
    enum err_code code = read_bounds(s, schema, &w);
    if (code != ERR_OK)
        return code;
    if (!w.lo_given && !w.hi_given) {
        *ret = gb_call(&s->build, gb_json(&s->build, whole ? GJSON_INTEGER : GJSON_NUMBER), next);
        return ERR_OK;
    }
    return whole ? whole_range(s, &w, next, ret) : decimal_range(s, &w, next, ret);
}

/* ---- arrays ------------------------------------------------------------------------------------- */

struct array_parts {
    json_t *prefix;          /* NULL = none */
    uint32_t *prefix_rule;   /* [prefix_count] */
    uint32_t prefix_count;
    uint32_t rest_rule;
    uint32_t min, max;
};

static enum err_code array_rules(struct schema *s, json_t *schema, struct array_parts *p)
{
    json_t *items = json_object_get(schema, "items");
    enum err_code code = ERR_OK;
    for (uint32_t i = 0; i < p->prefix_count && code == ERR_OK; i++) {
        char name[40];
        snprintf(name, sizeof name, "%s[%u]", json_is_array(items) ? "items" : "prefixItems", i);
        size_t path = schema_push(s, name);
        code = schema_rule(s, json_array_get(p->prefix, i), &p->prefix_rule[i]);
        if (code == ERR_OK)
            schema_pop(s, path);
    }
    if (code != ERR_OK)
        return code;
    if (items == NULL || json_is_array(items)) {
        p->rest_rule = gb_json(&s->build, GJSON_VALUE);
        if (p->prefix_count > 0 && p->min <= p->prefix_count) /* nothing that was not described */
            p->max = BASE_MIN(p->max, p->prefix_count);
        return ERR_OK;
    }
    size_t path = schema_push(s, "items");
    code = schema_rule(s, items, &p->rest_rule);
    if (code == ERR_OK)
        schema_pop(s, path);
    return code;
}

static uint32_t item_at(struct gbuild *b, const struct array_parts *p, uint32_t i, uint32_t next)
{
    return gb_call(b, i < p->prefix_count ? p->prefix_rule[i] : p->rest_rule, next);
}

static uint32_t comma(struct gbuild *b, uint32_t next)
{
    return gb_byte(b, ',', ',', gb_space(b, next));
}

static uint32_t array_nodes(struct gbuild *b, const struct array_parts *p, uint32_t next)
{
    uint32_t end = gb_byte(b, ']', ']', next), close = gb_space(b, end), at;
    uint32_t from = p->max; /* items that `at` stands behind */
    if (p->min > p->max)
        return GNODE_IDX_FAIL;
    if (p->max == UINT32_MAX) { /* a loop behind all that differs */
        from = BASE_MAX(1, BASE_MAX(p->min, p->prefix_count));
        at = gb_loop(b);
        gb_loop_set(b, at, comma(b, gb_call(b, p->rest_rule, at)), close);
    } else {
        at = from == 0 ? end : close;
    }
    for (uint32_t i = from; i-- > 1 && !b->full;)
        at = gb_split(b, comma(b, item_at(b, p, i, at)), i >= p->min ? close : GNODE_IDX_FAIL);
    if (from > 0)
        at = gb_split(b, item_at(b, p, 0, at), p->min == 0 ? end : GNODE_IDX_FAIL);
    return gb_byte(b, '[', '[', gb_space(b, at));
}

enum err_code schema_array(struct schema *s, json_t *schema, uint32_t next, uint32_t *ret)
{
    struct array_parts p = {.max = UINT32_MAX};
    json_t *items = json_object_get(schema, "items");
    p.prefix = json_object_get(schema, "prefixItems");
    if (p.prefix == NULL && json_is_array(items)) /* the drafts before 2020-12 */
        p.prefix = items;
    if (p.prefix != NULL && !json_is_array(p.prefix))
        return schema_wrong(s, ERR_INVALID, "prefixItems", "must be a list of schemas");
    enum err_code code = schema_count(s, schema, "minItems", &p.min);
    if (code == ERR_OK)
        code = schema_count(s, schema, "maxItems", &p.max);
    if (code != ERR_OK)
        return code;
    p.prefix_count = (uint32_t)json_array_size(p.prefix);
    p.prefix_rule = mem_array(p.prefix_count + 1, sizeof *p.prefix_rule);
    code = array_rules(s, schema, &p);
    if (code == ERR_OK)
        *ret = array_nodes(&s->build, &p, next);
    free(p.prefix_rule);
    return code;
}

/* ---- objects ------------------------------------------------------------------------------------- */

#define NAME_MAX_BYTES 512U /* each character is a level when other names are made */

struct member {
    const char *name;
    uint32_t rule;
    bool required;
};

struct object_parts {
    struct member *member;
    size_t count;
    bool more;               /* others may follow */
    uint32_t more_rule;
};

static enum err_code member_rule(struct schema *s, const char *name, json_t *schema, uint32_t *ret)
{
    size_t path = schema_push(s, "properties");
    schema_push(s, name);
    enum err_code code = schema_rule(s, schema, ret);
    if (code == ERR_OK)
        schema_pop(s, path);
    return code;
}

static enum err_code read_members(struct schema *s, json_t *schema, struct object_parts *p)
{
    json_t *properties = json_object_get(schema, "properties"), *v;
    const char *name;
    if (properties != NULL && !json_is_object(properties))
        return schema_wrong(s, ERR_INVALID, "properties", "must be an object of schemas");
    p->member = mem_array(json_object_size(properties) + json_array_size(json_object_get(schema, "required")) + 1,
                          sizeof *p->member);
    json_object_foreach(properties, name, v)
    {
        enum err_code code = member_rule(s, name, v, &p->member[p->count].rule);
        if (code != ERR_OK)
            return code;
        if (strlen(name) > NAME_MAX_BYTES)
            return schema_wrong(s, ERR_INVALID, "properties", "has a name of more than %u bytes", NAME_MAX_BYTES);
        p->member[p->count++].name = name;
    }
    return ERR_OK;
}

static enum err_code read_more(struct schema *s, json_t *schema, struct object_parts *p)
{
    json_t *more = json_object_get(schema, "additionalProperties");
    p->more_rule = gb_json(&s->build, GJSON_VALUE);
    /* An object that nothing is said of is any object; `properties: {}` says that there are none. */
    p->more = more == NULL ? json_object_get(schema, "properties") == NULL : !json_is_false(more);
    if (more == NULL || json_is_boolean(more))
        return ERR_OK;
    size_t path = schema_push(s, "additionalProperties");
    enum err_code code = schema_rule(s, more, &p->more_rule);
    if (code == ERR_OK)
        schema_pop(s, path);
    return code;
}

/* A required member that is not described takes what additionalProperties says. */
static enum err_code read_required(struct schema *s, json_t *schema, struct object_parts *p)
{
    json_t *required = json_object_get(schema, "required");
    bool closed = json_is_false(json_object_get(schema, "additionalProperties"));
    if (required != NULL && !json_is_array(required))
        return schema_wrong(s, ERR_INVALID, "required", "must be a list of names");
    if (!schema_spend(s, (uint64_t)json_array_size(required) * (p->count + json_array_size(required))))
        return s->e->code;
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));
        size_t k = 0;
        if (name == NULL || strlen(name) > NAME_MAX_BYTES)
            return schema_wrong(s, ERR_INVALID, "required", "must be a list of names");
        while (k < p->count && strcmp(p->member[k].name, name) != 0)
            k++;
        if (k == p->count) {
            if (closed)
                return schema_wrong(s, ERR_INVALID, "required", "names '%.60s', which properties does not have "
                                                                "and additionalProperties forbids", name);
            p->member[p->count++] = (struct member){.name = name, .rule = p->more_rule};
        }
        p->member[k].required = true;
    }
    return ERR_OK;
}

static uint32_t member_nodes(struct gbuild *b, const struct member *m, uint32_t next)
{
    json_t *name = json_string(m->name);
    char *text = json_dumps(name, JSON_ENCODE_ANY);
    uint32_t out = gb_byte(b, ':', ':', gb_space(b, gb_call(b, m->rule, next)));
    out = gb_text(b, text ? text : "", text ? strlen(text) : 0, out);
    free(text);
    json_decref(name);
    return out;
}

static uint32_t other_members(struct gbuild *b, const struct object_parts *p, uint32_t next)
{
    const char **names = mem_array(p->count + 1, sizeof(*names));
    for (size_t i = 0; i < p->count; i++)
        names[i] = p->member[i].name;
    uint32_t value = gb_byte(b, ':', ':', gb_space(b, gb_call(b, p->more_rule, next)));
    uint32_t out = gb_other_name(b, names, p->count, value);
    free(names);
    return out;
}

static uint32_t object_nodes(struct gbuild *b, const struct object_parts *p, uint32_t next)
{
    /* `first`: what follows when no member was written yet; `then`: when some was. */
    uint32_t end = gb_byte(b, '}', '}', next), close = gb_space(b, end), first = end, then = close;
    if (p->more) {
        then = gb_loop(b);
        uint32_t other = other_members(b, p, then);
        gb_loop_set(b, then, comma(b, other), close);
        first = gb_split(b, end, other);
    }
    for (size_t i = p->count; i-- > 0 && !b->full;) {
        uint32_t here = member_nodes(b, &p->member[i], then), after = comma(b, here);
        first = p->member[i].required ? here : gb_split(b, here, first);
        then = p->member[i].required ? after : gb_split(b, after, then);
    }
    return gb_byte(b, '{', '{', gb_space(b, first));
}

enum err_code schema_object(struct schema *s, json_t *schema, uint32_t next, uint32_t *ret)
{
    struct object_parts p = {0};
    enum err_code code = read_members(s, schema, &p);
    if (code == ERR_OK)
        code = read_more(s, schema, &p);
    if (code == ERR_OK)
        code = read_required(s, schema, &p);
    if (code == ERR_OK)
        *ret = object_nodes(&s->build, &p, next);
    free(p.member);
    return code;
}
