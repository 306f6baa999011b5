/* JSON text to values. jansson keeps the order of keys, which templates print. */
#include "experts/text/template_priv.h"

#include <jansson.h>
#include <string.h>

static struct value convert(struct rt *rt, const json_t *j);

static struct str *convert_text(struct rt *rt, const char *data, size_t len)
{
    return str_new(rt, data, len);
}

static struct value convert_object(struct rt *rt, const json_t *j)
{
    struct dict *d = dict_new(rt, json_object_size(j));
    /* The iterator interface is not const in jansson, though it changes nothing. */
    json_t *object = (json_t *)(uintptr_t)j;
    for (void *it = json_object_iter(object); it != NULL; it = json_object_iter_next(object, it)) {
        struct str *key = convert_text(rt, json_object_iter_key(it), json_object_iter_key_len(it));
        dict_put(rt, d, value_str(key), convert(rt, json_object_iter_value(it)));
    }
    return value_dict(d);
}

static struct value convert_array(struct rt *rt, const json_t *j)
{
    struct list *l = list_new(rt, json_array_size(j));
    for (size_t i = 0; i < json_array_size(j); i++)
        list_push(rt, l, convert(rt, json_array_get(j, i)));
    return value_list(l);
}

static struct value convert(struct rt *rt, const json_t *j)
{
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        return convert_object(rt, j);
    case JSON_ARRAY:
        return convert_array(rt, j);
    case JSON_STRING:
        return value_str(convert_text(rt, json_string_value(j), json_string_length(j)));
    case JSON_INTEGER:
        return value_int(json_integer_value(j));
    case JSON_REAL:
        return value_float(json_real_value(j));
    case JSON_TRUE:
        return value_bool(true);
    case JSON_FALSE:
        return value_bool(false);
    case JSON_NULL:
        break;
    }
    return value_none();
}

struct value value_from_json(struct rt *rt, const char *json, const char *what)
{
    json_error_t error;
    json_t *j = json_loads(json, JSON_ALLOW_NUL | JSON_DECODE_ANY, &error);
    if (j == NULL)
        rt_fail(rt, ERR_INVALID, "%s is not JSON: %s at %d:%d", what, error.text, error.line,
                error.column);
    rt->json = j; /* the conversion may leave by rt_fail: then rt_done releases it */
    struct value v = convert(rt, j);
    value_json_done(rt);
    return v;
}

void value_json_done(struct rt *rt)
{
    json_decref(rt->json);
    rt->json = NULL;
}
