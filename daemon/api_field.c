/* Field readers over jansson. NUL is allowed in strings, as the public API allows it. */
#include "daemon/api_field.h"

#include <math.h>

json_t *field_find(const json_t *object, const char *key)
{
    json_t *v = json_object_get(object, key);
    return json_is_null(v) ? NULL : v;
}

const char *field_type_name(const json_t *value)
{
    if (value == NULL)
        return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "a whole number";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "something else";
}

enum err_code field_bad_type(struct err *e, const char *param, const char *wanted,
                             const json_t *value)
{
    return err_set_param(e, ERR_INVALID, param, "'%s' must be %s, but %s was given", param, wanted,
                         field_type_name(value));
}

enum err_code field_bool(const json_t *object, const char *key, bool *ret, struct err *e)
{
    const json_t *v = field_find(object, key);
    if (v == NULL)
        return ERR_OK;
    if (!json_is_boolean(v))
        return field_bad_type(e, key, "a boolean", v);
    *ret = json_is_true(v);
    return ERR_OK;
}

enum err_code field_real(const json_t *object, const char *key, double min, double max, double *ret,
                         struct err *e)
{
    const json_t *v = field_find(object, key);
    if (v == NULL)
        return ERR_OK;
    if (!json_is_number(v))
        return field_bad_type(e, key, "a number", v);
    double number = json_number_value(v);
    if (!(number >= min && number <= max))
        return err_set_param(e, ERR_INVALID, key, "'%s' is %g, but must be between %g and %g", key,
                             number, min, max);
    *ret = number;
    return ERR_OK;
}

/* Whole values written with a fraction (8.0) are what some languages make of integers. */
static bool whole_number(const json_t *v, int64_t *ret)
{
    if (json_is_integer(v)) {
        *ret = json_integer_value(v);
        return true;
    }
    double number = json_number_value(v);
    if (!json_is_real(v) || number != floor(number) || fabs(number) > 9e15)
        return false;
    *ret = (int64_t)number;
    return true;
}

enum err_code field_int(const json_t *object, const char *key, int64_t min, int64_t max,
                        int64_t *ret, struct err *e)
{
    const json_t *v = field_find(object, key);
    int64_t number;
    if (v == NULL)
        return ERR_OK;
    if (!whole_number(v, &number))
        return field_bad_type(e, key, "a whole number", v);
    if (number < min)
        return err_set_param(e, ERR_INVALID, key, "'%s' is %lld, but must be at least %lld", key,
                             (long long)number, (long long)min);
    if (number > max)
        return err_set_param(e, ERR_INVALID, key, "'%s' is %lld, but must be at most %lld", key,
                             (long long)number, (long long)max);
    *ret = number;
    return ERR_OK;
}

enum err_code field_text(const json_t *object, const char *key, const char **ret, struct err *e)
{
    const json_t *v = field_find(object, key);
    if (v == NULL)
        return ERR_OK;
    if (!json_is_string(v))
        return field_bad_type(e, key, "a string", v);
    *ret = json_string_value(v);
    return ERR_OK;
}

enum err_code field_parse_body(const char *body, size_t len, json_t **ret, struct err *e)
{
    json_error_t why;
    size_t from = 0;
    while (from < len &&
           (body[from] == ' ' || body[from] == '\n' || body[from] == '\r' || body[from] == '\t'))
        from++;
    if (from == len)
        return err_set(e, ERR_INVALID, "the request has no body; send a JSON object");
    json_t *root = json_loadb(body, len, JSON_ALLOW_NUL | JSON_DECODE_ANY, &why);
    if (root == NULL)
        return err_set(e, ERR_INVALID, "the body is not valid JSON: %s (line %d, column %d)",
                       why.text, why.line, why.column);
    if (!json_is_object(root)) {
        err_set(e, ERR_INVALID, "the body must be a JSON object, but it is %s",
                field_type_name(root));
        json_decref(root);
        return ERR_INVALID;
    }
    *ret = root;
    return ERR_OK;
}
