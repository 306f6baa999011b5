/* oneOf: a value must be valid under exactly one branch, which an automaton cannot count. So branches are
 * taken only where it can be shown that what one of them generates is never valid under another: by type,
 * by fixed values, by lengths and ranges, or by a member that tells objects apart. What is not looked at
 * here can only make a schema narrower, so "never valid" stays true. */
#include <string.h>

#include "experts/grammar_schema.h"

#define APART_DEPTH_MAX 6U

static bool apart(struct schema *s, json_t *a, json_t *b, unsigned depth);

/* ---- fixed values ------------------------------------------------------------------------------ */

static bool has_values(const json_t *schema)
{
    return json_object_get(schema, "enum") != NULL || json_object_get(schema, "const") != NULL;
}

/* 3 and 3.0 are one value. */
static bool same_value(const json_t *a, const json_t *b)
{
    if (json_is_number(a) && json_is_number(b))
        return !(json_number_value(a) < json_number_value(b)) &&
               !(json_number_value(a) > json_number_value(b));
    return json_equal(a, b);
}

static bool values_allow(const json_t *schema, const json_t *v)
{
    const json_t *list = json_object_get(schema, "enum"), *only = json_object_get(schema, "const");
    bool found = list == NULL;
    for (size_t i = 0; i < json_array_size(list) && !found; i++)
        found = same_value(json_array_get(list, i), v);
    return found && (only == NULL || same_value(only, v));
}

static bool out_of_range(const json_t *v, const json_t *schema)
{
    const json_t *lo = json_object_get(schema, "minimum"), *hi = json_object_get(schema, "maximum");
    double d = json_number_value(v);
    return json_is_number(v) && ((json_is_number(lo) && d < json_number_value(lo)) ||
                                 (json_is_number(hi) && d > json_number_value(hi)));
}

/* One of a's fixed values may be valid under b. */
static bool value_fits(const json_t *v, const json_t *b)
{
    if (has_values(b) && !values_allow(b, v))
        return false;
    return schema_value_is(v, schema_valid_kinds(b)) && !out_of_range(v, b);
}

/* None of b's fixed values is of a kind that a makes. */
static bool values_unmade(const json_t *a, const json_t *b)
{
    const json_t *list = json_object_get(b, "enum"), *only = json_object_get(b, "const");
    unsigned made = schema_made_kinds(a);
    if (list == NULL)
        return !schema_value_is(only, made) || out_of_range(only, a);
    for (size_t i = 0; i < json_array_size(list); i++)
        if (schema_value_is(json_array_get(list, i), made) && !out_of_range(json_array_get(list, i), a))
            return false;
    return true;
}

static bool values_apart(const json_t *a, const json_t *b)
{
    const json_t *list = json_object_get(a, "enum"), *only = json_object_get(a, "const");
    if (list == NULL)
        return !value_fits(only, b);
    for (size_t i = 0; i < json_array_size(list); i++)
        if (values_allow(a, json_array_get(list, i)) && value_fits(json_array_get(list, i), b))
            return false;
    return true;
}

/* ---- lengths and ranges --------------------------------------------------------------------------- */

static bool above(const json_t *a, const char *least, const json_t *b, const char *most)
{
    const json_t *lo = json_object_get(a, least), *hi = json_object_get(b, most);
    return json_is_number(lo) && json_is_number(hi) && json_number_value(lo) > json_number_value(hi);
}

static bool ranges_apart(const json_t *a, const json_t *b, const char *least, const char *most)
{
    return above(a, least, b, most) || above(b, least, a, most);
}

static bool reaches(const json_t *a, const char *least, const json_t *b, const char *most)
{
    const json_t *lo = json_object_get(a, least), *hi = json_object_get(b, most);
    return json_is_number(lo) && json_is_number(hi) && json_number_value(lo) >= json_number_value(hi);
}

static bool numbers_apart(const json_t *a, const json_t *b)
{
    return ranges_apart(a, b, "minimum", "maximum") || reaches(a, "minimum", b, "exclusiveMaximum") ||
           reaches(b, "minimum", a, "exclusiveMaximum") || reaches(a, "exclusiveMinimum", b, "maximum") ||
           reaches(b, "exclusiveMinimum", a, "maximum") ||
           reaches(a, "exclusiveMinimum", b, "exclusiveMaximum") ||
           reaches(b, "exclusiveMinimum", a, "exclusiveMaximum");
}

/* ---- objects ----------------------------------------------------------------------------------------- */

static bool is_required(const json_t *schema, const char *name)
{
    const json_t *list = json_object_get(schema, "required");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *one = json_string_value(json_array_get(list, i));
        if (one != NULL && strcmp(one, name) == 0)
            return true;
    }
    return false;
}

/* May a generated object have the member? See read_more in grammar_types.c. */
static bool may_have(const json_t *schema, const char *name)
{
    const json_t *properties = json_object_get(schema, "properties");
    const json_t *more = json_object_get(schema, "additionalProperties");
    if (json_object_get(properties, name) != NULL || is_required(schema, name))
        return true;
    return more == NULL ? properties == NULL : !json_is_false(more);
}

/* b asks for a member that a never makes. */
static bool lacks_required(const json_t *a, const json_t *b)
{
    const json_t *list = json_object_get(b, "required");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (name != NULL && !may_have(a, name))
            return true;
    }
    return false;
}

/* A member that a always makes is forbidden by b, or of another kind there. */
static bool members_apart(struct schema *s, const json_t *a, const json_t *b, unsigned depth)
{
    const json_t *list = json_object_get(a, "required");
    json_t *in_a = json_object_get(a, "properties"), *in_b = json_object_get(b, "properties");
    bool closed = json_is_false(json_object_get(b, "additionalProperties"));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        json_t *mine = name != NULL ? json_object_get(in_a, name) : NULL;
        json_t *other = name != NULL ? json_object_get(in_b, name) : NULL;
        if (name != NULL && other == NULL && closed)
            return true;
        if (mine != NULL && other != NULL && apart(s, mine, other, depth + 1))
            return true;
    }
    return false;
}

/* ---- kinds --------------------------------------------------------------------------------------------- */

static bool kind_apart(struct schema *s, const json_t *a, const json_t *b, unsigned kind, unsigned depth)
{
    switch ((enum schema_kind)kind) {
    case SCHEMA_OBJECT:
        return lacks_required(a, b) || members_apart(s, a, b, depth);
    case SCHEMA_ARRAY:
        return ranges_apart(a, b, "minItems", "maxItems");
    case SCHEMA_STRING:
        return ranges_apart(a, b, "minLength", "maxLength");
    case SCHEMA_INTEGER:
    case SCHEMA_NUMBER:
        return numbers_apart(a, b);
    default:
        return false;
    }
}

/* Nothing that a generates is valid under b. */
static bool never_valid(struct schema *s, json_t *a, json_t *b, unsigned depth)
{
    if (has_values(a))
        return values_apart(a, b);
    unsigned made = schema_made_kinds(a), common = made & schema_valid_kinds(b);
    if (has_values(b))
        return values_unmade(a, b);
    for (unsigned kind = 0; kind < SCHEMA_KINDS; kind++)
        if ((common & 1U << kind) != 0 && !kind_apart(s, a, b, kind, depth))
            return false;
    return true;
}

static bool apart(struct schema *s, json_t *a, json_t *b, unsigned depth)
{
    if (depth > APART_DEPTH_MAX || !schema_spend(s, 200) || json_is_true(a) || json_is_true(b))
        return false;
    if (json_is_false(a) || json_is_false(b))
        return true;
    if (schema_inline(s, a, &a) != ERR_OK || schema_inline(s, b, &b) != ERR_OK)
        return false;
    return never_valid(s, a, b, depth) && never_valid(s, b, a, depth);
}

bool schema_are_apart(struct schema *s, json_t *a, json_t *b)
{
    return apart(s, a, b, 0);
}
