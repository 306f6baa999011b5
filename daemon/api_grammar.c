/* What the answer must look like: response_format, and llama.cpp's `grammar` and `json_schema`. Compiled
 * here, on the HTTP thread, so that a schema that cannot be met is a 400 before anything is queued. */
#include "daemon/api.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/api_field.h"

static enum err_code compile_schema(const json_t *schema, const char *param, struct grammar **ret,
                                    struct err *e)
{
    char *text = json_dumps(schema, JSON_COMPACT | JSON_ENCODE_ANY);
    if (text == NULL)
        return err_set_param(e, ERR_INVALID, param, "'%s' cannot be written as JSON again", param);
    enum err_code code = grammar_compile_schema(text, strlen(text), param, ret, e);
    free(text);
    return code;
}

static enum err_code compile_named_schema(const json_t *format, struct grammar **ret, struct err *e)
{
    const json_t *named = field_find(format, "json_schema");
    if (!json_is_object(named))
        return field_bad_type(e, "response_format.json_schema", "an object", named);
    const json_t *name = field_find(named, "name"), *schema = field_find(named, "schema");
    if (name != NULL && !json_is_string(name))
        return field_bad_type(e, "response_format.json_schema.name", "a string", name);
    if (!json_is_object(schema) && !json_is_boolean(schema))
        return field_bad_type(e, "response_format.json_schema.schema", "a schema", schema);
    /* `strict` changes nothing: the schema holds either way. */
    const json_t *strict = field_find(named, "strict");
    if (strict != NULL && !json_is_boolean(strict))
        return field_bad_type(e, "response_format.json_schema.strict", "a boolean", strict);
    return compile_schema(schema, "response_format.json_schema.schema", ret, e);
}

static enum err_code compile_format(const json_t *format, struct grammar **ret, struct err *e)
{
    if (!json_is_object(format))
        return field_bad_type(e, "response_format", "an object", format);
    const json_t *type = field_find(format, "type"), *schema = field_find(format, "schema");
    if (!json_is_string(type))
        return field_bad_type(e, "response_format.type", "a string", type);
    const char *name = json_string_value(type);
    if (strcmp(name, "text") == 0)
        return ERR_OK;
    if (strcmp(name, "json_schema") == 0)
        return compile_named_schema(format, ret, e);
    if (strcmp(name, "json_object") == 0)
        return schema != NULL ? compile_schema(schema, "response_format.schema", ret, e)
                              : grammar_compile_json_object(ret, e);
    return err_set_param(e, ERR_UNSUPPORTED, "response_format.type",
                         "'response_format' of type '%.40s' is not supported; text, json_object and "
                         "json_schema are", name);
}

enum err_code api_grammar_parse(const json_t *root, struct grammar **ret, struct err *e)
{
    const json_t *format = field_find(root, "response_format");
    const json_t *gbnf = field_find(root, "grammar"), *schema = field_find(root, "json_schema");
    if (gbnf != NULL && !json_is_string(gbnf))
        return field_bad_type(e, "grammar", "a string", gbnf);
    if (json_string_length(gbnf) == 0)
        gbnf = NULL; /* llama.cpp's clients send "" for none */
    enum err_code code = format != NULL ? compile_format(format, ret, e) : ERR_OK;
    if (code != ERR_OK)
        return code;
    if ((*ret != NULL) + (gbnf != NULL) + (schema != NULL) > 1) {
        grammar_unref(ret);
        return err_set_param(e, ERR_INVALID, gbnf != NULL ? "grammar" : "json_schema",
                             "only one of 'response_format', 'grammar' and 'json_schema' can be given");
    }
    if (gbnf != NULL)
        return grammar_compile_gbnf(json_string_value(gbnf), json_string_length(gbnf), ret, e);
    return schema != NULL ? compile_schema(schema, "json_schema", ret, e) : ERR_OK;
}
