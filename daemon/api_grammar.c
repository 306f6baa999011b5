/* What the answer must look like: response_format, and llama.cpp's `grammar` and `json_schema`.
 * Compiled here, on the HTTP thread, so that a schema that cannot be met is a 400 before anything
 * is queued. */
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

static enum err_code named_schema(const json_t *format, struct api_form *ret, struct err *e)
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
    *ret = (struct api_form){API_FORM_SCHEMA, schema, "response_format.json_schema.schema"};
    return ERR_OK;
}

static enum err_code form_of(const json_t *format, struct api_form *ret, struct err *e)
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
        return named_schema(format, ret, e);
    if (strcmp(name, "json_object") != 0)
        return err_set_param(e, ERR_UNSUPPORTED, "response_format.type",
                             "'response_format' of type '%.40s' is not supported; text, "
                             "json_object and json_schema are",
                             name);
    *ret = (struct api_form){schema != NULL ? API_FORM_SCHEMA : API_FORM_OBJECT, schema,
                             "response_format.schema"};
    return ERR_OK;
}

enum err_code api_grammar_parse(const json_t *root, struct api_form *ret_form, struct grammar **ret,
                                struct err *e)
{
    const json_t *format = field_find(root, "response_format");
    const json_t *gbnf = field_find(root, "grammar"), *schema = field_find(root, "json_schema");
    struct api_form form = {.kind = API_FORM_ANY};
    if (gbnf != NULL && !json_is_string(gbnf))
        return field_bad_type(e, "grammar", "a string", gbnf);
    if (json_string_length(gbnf) == 0)
        gbnf = NULL; /* llama.cpp's clients send "" for none */
    enum err_code code = format != NULL ? form_of(format, &form, e) : ERR_OK;
    if (code != ERR_OK)
        return code;
    if ((form.kind != API_FORM_ANY) + (gbnf != NULL) + (schema != NULL) > 1)
        return err_set_param(
            e, ERR_INVALID, gbnf != NULL ? "grammar" : "json_schema",
            "only one of 'response_format', 'grammar' and 'json_schema' can be given");
    if (schema != NULL)
        form = (struct api_form){API_FORM_SCHEMA, schema, "json_schema"};
    if (gbnf != NULL)
        form = (struct api_form){.kind = API_FORM_GBNF, .param = "grammar"};
    *ret_form = form;
    switch (form.kind) {
    case API_FORM_ANY:
        return ERR_OK;
    case API_FORM_OBJECT:
        return grammar_compile_json_object(ret, e);
    case API_FORM_SCHEMA:
        return compile_schema(form.schema, form.param, ret, e);
    case API_FORM_GBNF:
        break;
    }
    return grammar_compile_gbnf(json_string_value(gbnf), json_string_length(gbnf), ret, e);
}
