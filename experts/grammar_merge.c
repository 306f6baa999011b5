/* Two schemas as one, for allOf, for keywords beside $ref, and for keywords beside anyOf. Where both say
 * something of one kind the narrower holds; what cannot be joined is refused by name. */
#include "experts/grammar_schema.h"

#include <string.h>

bool schema_is_annotation(const char *key)
{
    static const char *const known[] = {
        "title", "description", "default", "examples", "example", "$schema", "$id", "id", "$comment", "$defs",
        "definitions", "discriminator", "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType"};
    for (size_t i = 0; i < BASE_COUNT(known); i++)
        if (strcmp(key, known[i]) == 0)
            return true;
    return strncmp(key, "x-", 2) == 0;
}

static bool is_one_of(const char *key, const char *const *list)
{
    for (; *list != NULL; list++)
        if (strcmp(key, *list) == 0)
            return true;
    return false;
}

static bool has_type(const json_t *list, const char *name)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *t = json_string_value(json_array_get(list, i));
        if (t != NULL && strcmp(t, name) == 0)
            return true;
    }
    return false;
}

static json_t *as_list(json_t *v)
{
    return json_is_array(v) ? json_incref(v) : json_pack("[O]", v);
}

static json_t *common_types(json_t *a, json_t *b)
{
    json_t *x = as_list(a), *y = as_list(b), *out = json_array();
    for (size_t i = 0; i < json_array_size(x); i++) {
        json_t *item = json_array_get(x, i);
        const char *t = json_string_value(item);
        if (t == NULL)
            continue;
        if (has_type(y, t) || (strcmp(t, "integer") == 0 && has_type(y, "number")))
            json_array_append(out, item);
        else if (strcmp(t, "number") == 0 && has_type(y, "integer"))
            json_array_append_new(out, json_string("integer"));
    }
    json_decref(x);
    json_decref(y);
    return out;
}

static bool holds(const json_t *list, const json_t *v)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_equal(json_array_get(list, i), v))
            return true;
    return false;
}

static json_t *common_values(json_t *a, const json_t *b)
{
    json_t *out = json_array();
    for (size_t i = 0; i < json_array_size(a); i++)
        if (holds(b, json_array_get(a, i)))
            json_array_append(out, json_array_get(a, i));
    return out;
}

static json_t *all_values(json_t *a, json_t *b)
{
    json_t *out = json_copy(a);
    for (size_t i = 0; i < json_array_size(b); i++)
        if (!holds(a, json_array_get(b, i)))
            json_array_append(out, json_array_get(b, i));
    return out;
}

static json_t *both(json_t *a, json_t *b)
{
    return json_pack("{s:[O,O]}", "allOf", a, b);
}

static json_t *joined_properties(json_t *a, json_t *b)
{
    json_t *out = json_copy(a), *v;
    const char *name;
    json_object_foreach(b, name, v)
    {
        json_t *mine = json_object_get(out, name);
        if (mine == NULL || json_equal(mine, v))
            json_object_set(out, name, v);
        else
            json_object_set_new(out, name, both(mine, v));
    }
    return out;
}

/* Members are copied, lists are compared each with each. */
static uint64_t join_cost(const json_t *a, const json_t *b)
{
    uint64_t members = json_object_size(a) + json_object_size(b);
    return members * SCHEMA_WORK_COPY + (uint64_t)json_array_size(a) * json_array_size(b) * 4;
}

/* NULL = there is no one keyword that says both. */
static json_t *join(const char *key, json_t *a, json_t *b)
{
    static const char *const floors[] = {"minimum", "exclusiveMinimum", "minLength", "minItems", NULL};
    static const char *const ceils[] = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", NULL};
    bool numbers = json_is_number(a) && json_is_number(b);
    if (json_equal(a, b))
        return json_incref(a);
    if (numbers && is_one_of(key, floors))
        return json_incref(json_number_value(a) >= json_number_value(b) ? a : b);
    if (numbers && is_one_of(key, ceils))
        return json_incref(json_number_value(a) <= json_number_value(b) ? a : b);
    if (strcmp(key, "type") == 0)
        return common_types(a, b);
    if (strcmp(key, "enum") == 0 && json_is_array(a) && json_is_array(b))
        return common_values(a, b);
    if (strcmp(key, "required") == 0 && json_is_array(a) && json_is_array(b))
        return all_values(a, b);
    if (strcmp(key, "properties") == 0 && json_is_object(a) && json_is_object(b))
        return joined_properties(a, b);
    if ((strcmp(key, "items") == 0) && !json_is_array(a) && !json_is_array(b))
        return both(a, b);
    if (strcmp(key, "allOf") == 0 && json_is_array(a) && json_is_array(b))
        return all_values(a, b);
    return NULL;
}

/* additionalProperties speaks of the properties beside it only: joining must not give it others. */
static bool closes_over(const json_t *a, const json_t *b)
{
    const json_t *more = json_object_get(a, "additionalProperties");
    json_t *own = json_object_get(a, "properties"), *v;
    const char *name;
    if (more == NULL || json_is_true(more))
        return false;
    json_object_foreach(json_object_get(b, "properties"), name, v)
        if (json_object_get(own, name) == NULL)
            return true;
    return false;
}

enum err_code schema_merge(struct schema *s, const json_t *a, const json_t *b, json_t **ret)
{
    const char *key;
    json_t *v;
    if (json_is_boolean(a) || json_is_boolean(b)) {
        const json_t *narrow = json_is_false(a) || json_is_true(b) ? a : b;
        *ret = (json_t *)narrow;
        return ERR_OK;
    }
    if (!json_is_object(a) || !json_is_object(b))
        return schema_wrong(s, ERR_INVALID, "", "is to be an object or a boolean");
    if (json_object_get(a, "$ref") != NULL && json_object_get(b, "$ref") != NULL) {
        json_t *in_place;
        enum err_code code = schema_inline(s, (json_t *)b, &in_place);
        if (code != ERR_OK || !json_is_object(in_place))
            return code != ERR_OK ? code : schema_merge(s, a, in_place, ret);
        b = in_place;
    }
    if (closes_over(a, b) || closes_over(b, a))
        return schema_wrong(s, ERR_UNSUPPORTED, "additionalProperties",
                            "beside properties of another part of allOf, anyOf or $ref is not supported");
    if (!schema_spend(s, 20 + SCHEMA_WORK_COPY * (json_object_size(a) + json_object_size(b))))
        return s->e->code;
    json_t *out = json_copy((json_t *)a);
    json_array_append_new(s->made, out);
    json_object_foreach((json_t *)b, key, v)
    {
        json_t *mine = json_object_get(out, key);
        if (mine == NULL) {
            json_object_set(out, key, v);
            continue;
        }
        if (schema_is_annotation(key))
            continue;
        if (!schema_spend(s, join_cost(mine, v)))
            return s->e->code;
        json_t *joint = join(key, mine, v);
        if (joint == NULL)
            return schema_wrong(s, ERR_UNSUPPORTED, key, "given twice with different values cannot be joined");
        json_object_set_new(out, key, joint);
    }
    *ret = out;
    return ERR_OK;
}
