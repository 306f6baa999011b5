/* `tools`, `tool_choice`, `parallel_tool_calls`: checked, and turned into what the prompt shows,
 * what the answer may be, and how its text is read back. */
#include "daemon/api.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/api_field.h"

#define TOOLS_MAX 128U    /* as the public API */
#define TOOL_NAME_MAX 64U /* the same */
#define TOOL_CALLS_MAX 8U /* of one answer; small models would go on for ever */

/* ---- the functions -----------------------------------------------------------------------------
 */

static enum err_code check_name(const json_t *function, const char *path, struct err *e)
{
    const json_t *name = field_find(function, "name");
    if (name == NULL)
        return err_set_param(e, ERR_INVALID, path, "'%s' is missing", path);
    if (!json_is_string(name))
        return field_bad_type(e, path, "a string", name);
    size_t len = json_string_length(name);
    const char *s = json_string_value(name);
    size_t good = strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");
    if (len == 0 || len > TOOL_NAME_MAX || good != len)
        return err_set_param(e, ERR_INVALID, path,
                             "'%s' must be 1 to %u letters, digits, '_' and '-'", path,
                             TOOL_NAME_MAX);
    return ERR_OK;
}

static enum err_code check_parameters(const json_t *function, const char *path, struct err *e)
{
    char param[96];
    const json_t *parameters = field_find(function, "parameters");
    if (parameters == NULL)
        return ERR_OK;
    if (!json_is_object(parameters))
        return field_bad_type(e, path, "a JSON Schema", parameters);
    const json_t *type = json_object_get(parameters, "type");
    if (type == NULL || (json_is_string(type) && strcmp(json_string_value(type), "object") == 0))
        return ERR_OK;
    snprintf(param, sizeof param, "%s.type", path);
    return err_set_param(e, ERR_INVALID, param,
                         "'%s' must be 'object': arguments are members of an object", param);
}

static enum err_code check_function(const json_t *function, size_t idx, struct err *e)
{
    char path[64];
    snprintf(path, sizeof path, "tools[%zu].function.name", idx);
    enum err_code code = check_name(function, path, e);
    if (code != ERR_OK)
        return code;
    const json_t *description = field_find(function, "description");
    snprintf(path, sizeof path, "tools[%zu].function.description", idx);
    if (description != NULL && !json_is_string(description))
        return field_bad_type(e, path, "a string", description);
    const json_t *strict = field_find(function, "strict");
    snprintf(path, sizeof path, "tools[%zu].function.strict", idx);
    if (strict != NULL && !json_is_boolean(strict))
        return field_bad_type(e, path, "a boolean", strict);
    snprintf(path, sizeof path, "tools[%zu].function.parameters", idx);
    return check_parameters(function, path, e);
}

static enum err_code check_tool(const json_t *tool, size_t idx, struct err *e)
{
    char path[64];
    snprintf(path, sizeof path, "tools[%zu]", idx);
    if (!json_is_object(tool))
        return field_bad_type(e, path, "an object", tool);
    snprintf(path, sizeof path, "tools[%zu].type", idx);
    const json_t *type = field_find(tool, "type");
    if (!json_is_string(type))
        return field_bad_type(e, path, "the string 'function'", type);
    if (strcmp(json_string_value(type), "function") != 0)
        return err_set_param(e, ERR_UNSUPPORTED, path,
                             "tools of type '%.40s' are not supported; "
                             "only 'function' is",
                             json_string_value(type));
    snprintf(path, sizeof path, "tools[%zu].function", idx);
    const json_t *function = field_find(tool, "function");
    if (!json_is_object(function))
        return field_bad_type(e, path, "an object", function);
    return check_function(function, idx, e);
}

/* Templates add descriptions and parameters to strings without asking whether they are there. */
static json_t *whole_tool(const json_t *tool)
{
    json_t *out = json_copy((json_t *)tool);
    json_t *function = json_copy(json_object_get(tool, "function"));
    if (field_find(function, "description") == NULL)
        json_object_set_new(function, "description", json_string(""));
    if (field_find(function, "parameters") == NULL)
        json_object_set_new(function, "parameters",
                            json_pack("{s:s,s:{}}", "type", "object", "properties"));
    json_object_set_new(out, "function", function);
    return out;
}

static enum err_code parse_list(const json_t *root, json_t **ret, struct err *e)
{
    const json_t *tools = field_find(root, "tools");
    enum err_code code = ERR_OK;
    if (tools != NULL && !json_is_array(tools))
        return field_bad_type(e, "tools", "an array", tools);
    if (json_array_size(tools) > TOOLS_MAX)
        return err_set_param(e, ERR_INVALID, "tools", "'tools' has %zu functions; %u are the most",
                             json_array_size(tools), TOOLS_MAX);
    for (size_t i = 0; i < json_array_size(tools) && code == ERR_OK; i++)
        code = check_tool(json_array_get(tools, i), i, e);
    if (code != ERR_OK)
        return code;
    *ret = json_array();
    for (size_t i = 0; i < json_array_size(tools); i++)
        json_array_append_new(*ret, whole_tool(json_array_get(tools, i)));
    return ERR_OK;
}

static const json_t *function_at(const json_t *list, size_t i)
{
    return json_object_get(json_array_get(list, i), "function");
}

static const char *name_at(const json_t *list, size_t i)
{
    return json_string_value(json_object_get(function_at(list, i), "name"));
}

/* ---- the choice
 * ---------------------------------------------------------------------------------- */

static enum err_code parse_named(const json_t *choice, struct api_tools *t, struct err *e)
{
    const json_t *type = field_find(choice, "type");
    if (type != NULL && (!json_is_string(type) || strcmp(json_string_value(type), "function") != 0))
        return err_set_param(e, ERR_UNSUPPORTED, "tool_choice.type",
                             "'tool_choice.type' must be 'function'");
    const json_t *name = field_find(field_find(choice, "function"), "name");
    if (!json_is_string(name))
        return err_set_param(e, ERR_INVALID, "tool_choice",
                             "'tool_choice.function.name' must be a string");
    for (size_t i = 0; i < json_array_size(t->list) && t->named == NULL; i++)
        if (strcmp(name_at(t->list, i), json_string_value(name)) == 0) {
            t->named = name_at(t->list, i);
            t->named_idx = i;
        }
    t->choice = API_TOOLS_REQUIRED;
    if (t->named != NULL)
        return ERR_OK;
    return err_set_param(e, ERR_INVALID, "tool_choice",
                         "'tool_choice' names '%.60s', which is not among 'tools'",
                         json_string_value(name));
}

static enum err_code parse_choice(const json_t *root, struct api_tools *t, struct err *e)
{
    const json_t *choice = field_find(root, "tool_choice");
    t->choice = json_array_size(t->list) > 0 ? API_TOOLS_AUTO : API_TOOLS_NONE;
    if (choice == NULL)
        return ERR_OK;
    if (json_is_object(choice))
        return parse_named(choice, t, e);
    if (!json_is_string(choice))
        return field_bad_type(e, "tool_choice", "a string or an object", choice);
    const char *name = json_string_value(choice);
    if (strcmp(name, "none") == 0)
        t->choice = API_TOOLS_NONE;
    else if (strcmp(name, "required") == 0)
        t->choice = API_TOOLS_REQUIRED;
    else if (strcmp(name, "auto") != 0)
        return err_set_param(e, ERR_INVALID, "tool_choice",
                             "'tool_choice' is '%.40s', but must be "
                             "none, auto, required or an object",
                             name);
    if (t->choice == API_TOOLS_REQUIRED && json_array_size(t->list) == 0)
        return err_set_param(e, ERR_INVALID, "tool_choice",
                             "'tool_choice' 'required' needs 'tools' to choose from");
    return ERR_OK;
}

enum err_code api_tools_parse(const json_t *root, struct api_tools *ret, struct err *e)
{
    bool parallel_given = field_find(root, "parallel_tool_calls") != NULL;
    struct api_tools t = {.parallel = true};
    enum err_code code = parse_list(root, &t.list, e);
    if (code == ERR_OK)
        code = parse_choice(root, &t, e);
    if (code == ERR_OK)
        code = field_bool(root, "parallel_tool_calls", &t.parallel, e);
    if (code == ERR_OK && t.choice != API_TOOLS_NONE &&
        json_string_length(field_find(root, "grammar")) > 0)
        code =
            err_set_param(e, ERR_INVALID, "grammar",
                          "'grammar' cannot be given together with 'tools'; 'response_format' can");
    if (code != ERR_OK) {
        api_tools_done(&t);
        return code;
    }
    /* Where one call is asked for, more are made only for those who say that they want them: a
     * small model that may go on does, with the same call again. */
    if (t.choice == API_TOOLS_REQUIRED && !parallel_given)
        t.parallel = false;
    if (t.choice == API_TOOLS_NONE) {
        json_decref(t.list);
        t.list = NULL;
    }
    *ret = t;
    return ERR_OK;
}

void api_tools_done(struct api_tools *t)
{
    json_decref(t->list);
    t->list = NULL;
}

/* ---- what the answer may be
 * ------------------------------------------------------------------------ */

/* Texts that grammar_compile_tools reads; freed as one. */
struct compiled {
    struct grammar_tool tool[TOOLS_MAX];
    char *schema[TOOLS_MAX];
    char param[TOOLS_MAX][48];
    char *answer;
    size_t count;
};

static void add_tool(const struct api_tools *t, size_t idx, struct compiled *c)
{
    const json_t *function = function_at(t->list, idx);
    size_t at = c->count++;
    c->schema[at] = json_dumps(json_object_get(function, "parameters"), JSON_COMPACT);
    snprintf(c->param[at], sizeof c->param[at], "tools[%zu].function.parameters", idx);
    c->tool[at] = (struct grammar_tool){
        .name = name_at(t->list, idx),
        .schema = c->schema[at],
        .param = c->param[at],
        .must_hold =
            t->choice == API_TOOLS_REQUIRED || json_is_true(json_object_get(function, "strict")),
    };
}

static enum err_code compile(const struct api_tools *t, const struct api_form *answer,
                             struct grammar **ret, struct err *e)
{
    struct compiled *c = mem_alloc(sizeof *c);
    for (size_t i = 0; i < json_array_size(t->list); i++)
        if (t->named == NULL || i == t->named_idx)
            add_tool(t, i, c);
    if (answer->schema != NULL)
        c->answer = json_dumps(answer->schema, JSON_COMPACT | JSON_ENCODE_ANY);
    const struct grammar_tools opt = {.tools = c->tool,
                                      .count = c->count,
                                      .form = t->format->form,
                                      .start = t->start,
                                      .calls_max = t->calls_max,
                                      .answer_is_json = answer->kind == API_FORM_OBJECT ||
                                                        answer->kind == API_FORM_SCHEMA,
                                      .answer_schema = c->answer,
                                      .answer_param = answer->param};
    enum err_code code = grammar_compile_tools(&opt, ret, e);
    for (size_t i = 0; i < c->count; i++)
        free(c->schema[i]);
    free(c->answer);
    free(c);
    return code;
}

enum err_code api_tools_prepare(struct api_call *c, struct err *e)
{
    struct api_tools *t = &c->tools;
    struct grammar *grammar = NULL;
    t->format = &server_expert_of(c->server, c->expert)->tools;
    if (t->choice == API_TOOLS_NONE)
        return ERR_OK;
    t->calls_max = t->parallel && t->named == NULL ? TOOL_CALLS_MAX : 1;
    if (t->choice == API_TOOLS_REQUIRED)
        t->start = t->named != NULL || json_array_size(t->list) == 1 ? GRAMMAR_TOOLS_AT_ARGUMENTS
                                                                     : GRAMMAR_TOOLS_AT_NAME;
    if (t->start == GRAMMAR_TOOLS_AT_ARGUMENTS && t->named == NULL)
        t->named = name_at(t->list, 0);
    /* A marker that is a control token is in no text: calls are found by what they look like. */
    t->constrained = t->start != GRAMMAR_TOOLS_AT_TEXT || !t->format->hidden_marker;
    if (!t->constrained)
        return ERR_OK;
    enum err_code code = compile(t, &c->options.form, &grammar, e);
    if (code != ERR_OK)
        return code;
    grammar_unref(&c->options.grammar);
    c->options.grammar = grammar;
    if (t->choice == API_TOOLS_REQUIRED)
        c->options.stops_count = 0; /* stop strings end text; a call would be torn by them */
    return ERR_OK;
}

void api_tools_put_prefill(const struct api_call *c, struct buf *out)
{
    const struct api_tools *t = &c->tools;
    if (t->choice == API_TOOLS_REQUIRED)
        tool_format_prefill(t->format, t->start == GRAMMAR_TOOLS_AT_ARGUMENTS ? t->named : NULL,
                            out);
}

/* ---- what the answer was
 * ------------------------------------------------------------------------------ */

struct tool_parse *api_tools_open_parse(const struct api_call *c)
{
    const struct api_tools *t = &c->tools;
    return tool_parse_open(&(struct tool_parse_options){.form = t->format->form,
                                                        .tools = t->list,
                                                        .start = t->start,
                                                        .name = t->named,
                                                        .constrained = t->constrained,
                                                        .calls_max = t->calls_max});
}

void api_tools_new_id(const struct api_call *c, char ret[API_TOOL_ID_BYTES])
{
    unsigned long long bits = api_fresh_bits();
    if (c->tools.format->short_ids)
        snprintf(ret, API_TOOL_ID_BYTES, "%09llx", bits >> 28);
    else
        snprintf(ret, API_TOOL_ID_BYTES, "call_%016llx%08llx", bits,
                 (unsigned long long)api_fresh_bits() >> 32);
}
