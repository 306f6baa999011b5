/* The `messages` of a chat body: checked, and turned into the one shape that templates
 * understand (known role names, content as a string, tool arguments as an object). */
#include "daemon/api.h"

#include <string.h>

#include "daemon/api_field.h"

static const char *normal_role(const char *role)
{
    static const char *const roles[][2] = {
        {"system", "system"},       {"developer", "system"}, {"user", "user"},
        {"assistant", "assistant"}, {"tool", "tool"},        {"function", "tool"},
    };
    for (size_t i = 0; i < BASE_COUNT(roles); i++)
        if (strcmp(role, roles[i][0]) == 0)
            return roles[i][1];
    return NULL;
}

/* ---- content ------------------------------------------------------------------------------- */

static enum err_code append_part(struct buf *text, const json_t *part, const char *path,
                                 size_t part_idx, struct err *e)
{
    char param[96];
    if (!json_is_object(part)) {
        snprintf(param, sizeof param, "%s[%zu]", path, part_idx);
        return field_bad_type(e, param, "an object", part);
    }
    const json_t *type = field_find(part, "type");
    snprintf(param, sizeof param, "%s[%zu].type", path, part_idx);
    if (!json_is_string(type))
        return field_bad_type(e, param, "a string", type);
    const char *name = json_string_value(type);
    bool refusal = strcmp(name, "refusal") == 0;
    if (!refusal && strcmp(name, "text") != 0)
        return err_set_param(e, ERR_UNSUPPORTED, param,
                             "content of type '%.40s' is not supported; the experts read text",
                             name);
    const json_t *value = field_find(part, refusal ? "refusal" : "text");
    snprintf(param, sizeof param, "%s[%zu].%s", path, part_idx, refusal ? "refusal" : "text");
    if (!json_is_string(value))
        return field_bad_type(e, param, "a string", value);
    buf_append(text, json_string_value(value), json_string_length(value));
    return ERR_OK;
}

/* Parts are joined without anything between them: a client that cut its text gets the same prompt
 * as one that did not. */
static enum err_code join_parts(const json_t *parts, const char *path, json_t **ret, struct err *e)
{
    struct buf text = {0};
    enum err_code code = ERR_OK;
    if (json_array_size(parts) == 0)
        return err_set_param(e, ERR_INVALID, path, "'%s' is an empty array", path);
    for (size_t i = 0; i < json_array_size(parts) && code == ERR_OK; i++)
        code = append_part(&text, json_array_get(parts, i), path, i, e);
    if (code == ERR_OK)
        *ret = json_stringn(text.data != NULL ? text.data : "", text.len);
    buf_done(&text);
    return code;
}

static enum err_code parse_content(const json_t *message, const char *role, size_t idx,
                                   json_t **ret, struct err *e)
{
    char path[64];
    snprintf(path, sizeof path, "messages[%zu].content", idx);
    const json_t *content = json_object_get(message, "content");
    bool assistant = strcmp(role, "assistant") == 0;
    bool calls = field_find(message, "tool_calls") != NULL;
    if ((content == NULL && assistant && calls) || (json_is_null(content) && assistant)) {
        *ret = json_string("");
        return ERR_OK;
    }
    if (content == NULL)
        return err_set_param(e, ERR_INVALID, path, "'%s' is missing", path);
    if (json_is_string(content)) {
        *ret = json_incref((json_t *)content);
        return ERR_OK;
    }
    if (json_is_array(content))
        return join_parts(content, path, ret, e);
    return field_bad_type(e, path, "a string or an array of parts", content);
}

/* ---- tool calls of the assistant ------------------------------------------------------------ */

/* The API carries arguments as JSON text; templates print an object. Text that is no object stays.
 */
static json_t *arguments_value(const json_t *arguments)
{
    json_t *object = NULL;
    if (json_is_string(arguments))
        object = json_loadb(json_string_value(arguments), json_string_length(arguments),
                            JSON_ALLOW_NUL, NULL);
    if (object != NULL && !json_is_object(object)) {
        json_decref(object);
        object = NULL;
    }
    return object != NULL ? object : json_incref((json_t *)arguments);
}

static enum err_code parse_tool_call(const json_t *call, const char *path, json_t *out,
                                     struct err *e)
{
    char param[96];
    const json_t *function = field_find(call, "function");
    snprintf(param, sizeof param, "%s.function", path);
    if (!json_is_object(call) || !json_is_object(function))
        return field_bad_type(e, param, "an object", function);
    const json_t *name = field_find(function, "name");
    const json_t *arguments = field_find(function, "arguments");
    snprintf(param, sizeof param, "%s.function.name", path);
    if (!json_is_string(name))
        return field_bad_type(e, param, "a string", name);
    snprintf(param, sizeof param, "%s.function.arguments", path);
    if (arguments != NULL && !json_is_string(arguments) && !json_is_object(arguments))
        return field_bad_type(e, param, "a string of JSON", arguments);
    json_t *copy = json_copy((json_t *)call), *inner = json_copy((json_t *)function);
    json_object_set_new(inner, "arguments",
                        arguments != NULL ? arguments_value(arguments) : json_object());
    json_object_set_new(copy, "function", inner);
    json_array_append_new(out, copy);
    return ERR_OK;
}

static enum err_code parse_tool_calls(const json_t *message, size_t idx, json_t *out, struct err *e)
{
    char path[64];
    const json_t *calls = field_find(message, "tool_calls");
    enum err_code code = ERR_OK;
    snprintf(path, sizeof path, "messages[%zu].tool_calls", idx);
    if (calls == NULL) {
        json_object_del(out, "tool_calls");
        return ERR_OK;
    }
    if (!json_is_array(calls))
        return field_bad_type(e, path, "an array", calls);
    json_t *list = json_array();
    for (size_t i = 0; i < json_array_size(calls) && code == ERR_OK; i++) {
        snprintf(path, sizeof path, "messages[%zu].tool_calls[%zu]", idx, i);
        code = parse_tool_call(json_array_get(calls, i), path, list, e);
    }
    json_object_set_new(out, "tool_calls", list);
    return code;
}

/* ---- messages ------------------------------------------------------------------------------- */

static enum err_code parse_role(const json_t *message, size_t idx, const char **ret, struct err *e)
{
    char path[64];
    snprintf(path, sizeof path, "messages[%zu].role", idx);
    const json_t *role = field_find(message, "role");
    if (role == NULL)
        return err_set_param(e, ERR_INVALID, path, "'%s' is missing", path);
    if (!json_is_string(role))
        return field_bad_type(e, path, "a string", role);
    *ret = normal_role(json_string_value(role));
    if (*ret == NULL)
        return err_set_param(e, ERR_INVALID, path,
                             "'%s' is '%.40s', but must be one of system, "
                             "developer, user, assistant, tool",
                             path, json_string_value(role));
    return ERR_OK;
}

/* Which call a result is of: templates print it, and the public API wants it. */
static enum err_code check_call_id(const json_t *message, size_t idx, struct err *e)
{
    char path[64];
    const json_t *role = field_find(message, "role"), *id = field_find(message, "tool_call_id");
    snprintf(path, sizeof path, "messages[%zu].tool_call_id", idx);
    if (strcmp(json_string_value(role), "tool") != 0)
        return ERR_OK;
    if (id == NULL)
        return err_set_param(e, ERR_INVALID, path, "'%s' is missing", path);
    return json_is_string(id) ? ERR_OK : field_bad_type(e, path, "a string", id);
}

static enum err_code parse_message(const json_t *message, size_t idx, struct api_messages *m,
                                   struct err *e)
{
    char path[64];
    const char *role;
    json_t *content = NULL;
    snprintf(path, sizeof path, "messages[%zu]", idx);
    if (!json_is_object(message))
        return field_bad_type(e, path, "an object", message);
    enum err_code code = parse_role(message, idx, &role, e);
    if (code == ERR_OK)
        code = check_call_id(message, idx, e);
    if (code == ERR_OK)
        code = parse_content(message, role, idx, &content, e);
    if (code != ERR_OK)
        return code;
    json_t *out = json_copy((json_t *)message);
    json_object_set_new(out, "role", json_string(role));
    json_object_set_new(out, "content", content);
    code = parse_tool_calls(message, idx, out, e);
    json_array_append_new(m->messages, out);
    m->has_system |= strcmp(role, "system") == 0;
    return code;
}

static enum err_code parse_messages(const json_t *root, struct api_messages *m, struct err *e)
{
    const json_t *list = field_find(root, "messages");
    enum err_code code = ERR_OK;
    if (list == NULL)
        return err_set_param(e, ERR_INVALID, "messages", "'messages' is missing");
    if (!json_is_array(list))
        return field_bad_type(e, "messages", "an array of messages", list);
    if (json_array_size(list) == 0)
        return err_set_param(e, ERR_INVALID, "messages", "'messages' is empty");
    m->messages = json_array();
    for (size_t i = 0; i < json_array_size(list) && code == ERR_OK; i++)
        code = parse_message(json_array_get(list, i), i, m, e);
    return code;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static enum err_code parse_variables(const json_t *root, struct api_messages *m, struct err *e)
{
    json_t *variables = field_find(root, "chat_template_kwargs");
    if (variables == NULL)
        return ERR_OK;
    if (!json_is_object(variables))
        return field_bad_type(e, "chat_template_kwargs", "an object", variables);
    m->variables = json_incref(variables);
    return ERR_OK;
}

void api_messages_done(struct api_messages *m)
{
    json_decref(m->messages);
    json_decref(m->variables);
    *m = (struct api_messages){0};
}

enum err_code api_messages_parse(const json_t *root, struct api_messages *ret, struct err *e)
{
    struct api_messages m = {0};
    enum err_code code = parse_messages(root, &m, e);
    if (code == ERR_OK)
        code = parse_variables(root, &m, e);
    if (code != ERR_OK) {
        api_messages_done(&m);
        return code;
    }
    *ret = m;
    return ERR_OK;
}
