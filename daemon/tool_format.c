/* Call forms, probes of templates, and the generic format. */
#include "daemon/tool_format.h"

#include <stdlib.h>
#include <string.h>

/* ---- forms ------------------------------------------------------------------------------------
 */

/* Of models trained on Hermes's format, and of everyone who has none of his own. */
const struct grammar_call_form tool_form_tags = {
    .marker = "<tool_call>",
    .open = "\n{\"name\": \"",
    .middle = "\", \"arguments\": ",
    .end = "}\n</tool_call>",
    .between = "\n",
    .again = "<tool_call>\n{\"name\": \"",
};
/* Llama 3.1: one call, and nothing else. */
const struct grammar_call_form tool_form_parameters = {
    .marker = "{\"name\": \"",
    .open = "",
    .middle = "\", \"parameters\": ",
    .end = "}",
    .between = "; ",
    .again = "{\"name\": \"",
    .anchored = true,
};
/* Mistral: a list behind a control token. */
static const struct grammar_call_form tool_form_list = {
    .marker = "[TOOL_CALLS]",
    .open = "[{\"name\": \"",
    .middle = "\", \"arguments\": ",
    .end = "}",
    .between = ", ",
    .again = "{\"name\": \"",
};
/* Functionary 3.1, and Llama 3.1 with functions of the user's own. */
static const struct grammar_call_form tool_form_function = {
    .marker = "<function=",
    .open = "",
    .middle = ">",
    .end = "</function>",
    .between = "",
    .again = "<function=",
};

/* ---- probes ------------------------------------------------------------------------------------
 */

#define PROBE_TOOLS                                                                                \
    "[{\"type\":\"function\",\"function\":{\"name\":\"probe_name\",\"description\":\"A probe.\","  \
    "\"parameters\":{\"type\":\"object\",\"properties\":{\"probe_key\":{\"type\":\"string\","      \
    "\"description\":\"A key.\"}},\"required\":[\"probe_key\"]}}}]"
#define PROBE_USER "{\"role\":\"user\",\"content\":\"probe_user\"}"

static bool render(const struct chat_template *t, const char *messages, const char *tools,
                   struct buf *text)
{
    struct err e = {0};
    const struct template_input in = {.messages_json = messages,
                                      .tools_json = tools,
                                      .add_generation_prompt = true,
                                      .bos_token = "",
                                      .eos_token = ""};
    buf_clear(text);
    buf_append(text, "", 0);
    bool ok = template_render(t, &in, text, &e) == ERR_OK;
    buf_append(text, "", 1); /* for strstr */
    return ok;
}

static bool shows(const struct chat_template *t, const char *messages, const char *tools,
                  const char *what)
{
    struct buf text = {0};
    bool found = render(t, messages, tools, &text) && strstr(text.data, what) != NULL;
    buf_done(&text);
    return found;
}

/* A turn with one call and its result; arguments as a template may want them. */
static bool render_call(const struct chat_template *t, bool as_text, const char *tools,
                        struct buf *text)
{
    const char *arguments = as_text ? "\"{\\\"probe_key\\\": \\\"probe_value\\\"}\""
                                    : "{\"probe_key\":\"probe_value\"}";
    char *messages =
        mem_format("[" PROBE_USER ",{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":"
                   "[{\"id\":\"abcdefghi\",\"type\":\"function\",\"function\":{\"name\":"
                   "\"probe_name\",\"arguments\":%s}}]},{\"role\":\"tool\",\"name\":"
                   "\"probe_name\",\"tool_call_id\":\"abcdefghi\",\"content\":"
                   "\"probe_result\"}]",
                   arguments);
    bool ok = render(t, messages, tools, text) && strstr(text->data, "probe_value") != NULL &&
              strstr(text->data, "probe_result") != NULL;
    free(messages);
    return ok;
}

/* The same with an id of the usual kind fails where nine letters are asked for. */
static bool wants_short_ids(const struct chat_template *t, const char *tools)
{
    return !shows(
               t,
               "[" PROBE_USER ",{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":"
               "\"call_0123456789\",\"type\":\"function\",\"function\":{\"name\":\"probe_name\","
               "\"arguments\":{\"probe_key\":\"probe_value\"}}}]},{\"role\":\"tool\",\"name\":"
               "\"probe_name\",\"tool_call_id\":\"call_0123456789\",\"content\":\"probe_result\"}]",
               tools, "probe_value") &&
           !shows(t,
                  "[" PROBE_USER
                  ",{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":"
                  "\"call_0123456789\",\"type\":\"function\",\"function\":{\"name\":\"probe_name\","
                  "\"arguments\":\"{}\"}}]},{\"role\":\"tool\",\"name\":\"probe_name\","
                  "\"tool_call_id\":\"call_0123456789\",\"content\":\"probe_result\"}]",
                  tools, "probe_name");
}

/* Which form the text of a past call has: what stands around the name. */
static const struct grammar_call_form *form_of(const char *text)
{
    if (strstr(text, "<function=probe_name>") != NULL)
        return &tool_form_function;
    if (strstr(text, "[TOOL_CALLS]") != NULL)
        return &tool_form_list;
    if (strstr(text, "<tool_call>") != NULL)
        return &tool_form_tags;
    if (strstr(text, "\"parameters\": {\"probe_key\"") != NULL)
        return &tool_form_parameters;
    return &tool_form_tags;
}

static bool is_control_text(const struct tokenizer *t, const char *text)
{
    struct token_list ids = {0};
    struct err e = {0};
    bool control = false;
    if (t != NULL && tokenizer_encode(t, text, strlen(text), true, &ids, &e) == ERR_OK)
        for (size_t i = 0; i < ids.count; i++)
            control |= tokenizer_is_control(t, ids.ids[i]);
    free(ids.ids);
    return control;
}

void tool_format_probe(const struct chat_template *t, const struct tokenizer *tokenizer,
                       struct tool_format *ret)
{
    struct buf text = {0};
    *ret = (struct tool_format){.form = &tool_form_tags};
    if (t == NULL)
        return;
    ret->takes_system =
        shows(t, "[{\"role\":\"system\",\"content\":\"probe_system\"}," PROBE_USER "]", NULL,
              "probe_system");
    ret->takes_tools = shows(t, "[" PROBE_USER "]", PROBE_TOOLS, "probe_name");
    const char *tools = ret->takes_tools ? PROBE_TOOLS : NULL;
    ret->renders_calls = render_call(t, false, tools, &text) || render_call(t, true, tools, &text);
    if (ret->renders_calls && ret->takes_tools) {
        /* Functions are described in the same text: the call is what comes after the user's turn.
         */
        const char *turn = strstr(text.data, "probe_user");
        ret->form = form_of(turn != NULL ? turn : text.data);
    }
    ret->short_ids = ret->renders_calls && wants_short_ids(t, tools);
    ret->hidden_marker = is_control_text(tokenizer, ret->form->marker);
    buf_done(&text);
}

/* ---- conversations
 * ------------------------------------------------------------------------------- */

static const char *role_of(const json_t *message)
{
    const char *role = json_string_value(json_object_get(message, "role"));
    return role != NULL ? role : "";
}

static void set_content(json_t *message, const char *text, size_t len)
{
    json_object_set_new(message, "content", json_stringn(text, len));
}

/* before + between + the message's own text, or the other way round. */
static void add_content(json_t *message, const struct buf *text, bool behind)
{
    const json_t *content = json_object_get(message, "content");
    struct buf out = {0};
    if (behind)
        buf_append(&out, json_string_value(content), json_string_length(content));
    if (behind && out.len > 0)
        buf_puts(&out, "\n");
    buf_append(&out, text->data, text->len);
    if (!behind) {
        buf_puts(&out, "\n\n");
        buf_append(&out, json_string_value(content), json_string_length(content));
    }
    set_content(message, out.data, out.len);
    buf_done(&out);
}

/* {"name": ..., "arguments": ...} of one past call in the tags of the generic form. */
static void put_call(const json_t *call, struct buf *out)
{
    const json_t *function = json_object_get(call, "function");
    const json_t *arguments = json_object_get(function, "arguments");
    char *name = json_dumps(json_object_get(function, "name"), JSON_ENCODE_ANY);
    char *value = json_is_string(arguments)
                      ? mem_strndup(json_string_value(arguments), json_string_length(arguments))
                      : json_dumps(arguments, JSON_ENCODE_ANY);
    buf_printf(out, "%s<tool_call>\n{\"name\": %s, \"arguments\": %s}\n</tool_call>",
               out->len > 0 ? "\n" : "", name != NULL ? name : "\"\"",
               value != NULL ? value : "{}");
    free(name);
    free(value);
}

static void calls_as_text(json_t *message)
{
    struct buf text = {0};
    const json_t *calls = json_object_get(message, "tool_calls");
    for (size_t i = 0; i < json_array_size(calls); i++)
        put_call(json_array_get(calls, i), &text);
    if (text.len > 0)
        add_content(message, &text, true);
    json_object_del(message, "tool_calls");
    buf_done(&text);
}

/* Results of one turn's calls are one message: many templates want users and assistants in turn. */
static void results_as_text(json_t *messages)
{
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i),
               *into = i > 0 ? json_array_get(messages, i - 1) : NULL;
        if (strcmp(role_of(message), "tool") != 0)
            continue;
        struct buf text = {0};
        const json_t *content = json_object_get(message, "content");
        buf_puts(&text, "<tool_response>\n");
        buf_append(&text, json_string_value(content), json_string_length(content));
        buf_puts(&text, "\n</tool_response>");
        if (into != NULL && json_is_true(json_object_get(into, "tool_response"))) {
            add_content(into, &text, true);
            json_array_remove(messages, i--);
        } else {
            json_object_set_new(message, "role", json_string("user"));
            json_object_set_new(message, "tool_response", json_true());
            set_content(message, text.data, text.len);
        }
        buf_done(&text);
    }
}

/* A user's turn right behind the results belongs to them. */
static void join_user_turns(json_t *messages)
{
    for (size_t i = 1; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i), *before = json_array_get(messages, i - 1);
        if (!json_is_true(json_object_get(before, "tool_response")) ||
            strcmp(role_of(message), "user") != 0)
            continue;
        const json_t *content = json_object_get(message, "content");
        struct buf text = {0};
        buf_append(&text, json_string_value(content), json_string_length(content));
        add_content(before, &text, true);
        buf_done(&text);
        json_array_remove(messages, i--);
    }
}

static void describe_tools(const json_t *tools, struct buf *out)
{
    buf_puts(out,
             "You can call functions to help the user. These are the functions, one JSON object a "
             "line:\n<tools>\n");
    for (size_t i = 0; i < json_array_size(tools); i++) {
        char *one = json_dumps(json_object_get(json_array_get(tools, i), "function"), 0);
        buf_printf(out, "%s\n", one != NULL ? one : "{}");
        free(one);
    }
    buf_puts(
        out,
        "</tools>\nTo call a function, write its name and its arguments as one JSON object in "
        "tags, like this:\n<tool_call>\n{\"name\": \"the function's name\", \"arguments\": "
        "{\"an argument\": \"its value\"}}\n</tool_call>\nIf no function helps, answer in plain "
        "text.");
}

/* In the system message; where a template takes none, before the first user's words. */
static void list_tools(const struct tool_format *f, json_t *messages, const json_t *tools)
{
    struct buf text = {0};
    json_t *first = json_array_get(messages, 0);
    describe_tools(tools, &text);
    if (strcmp(role_of(first), "system") == 0) {
        add_content(first, &text, true);
    } else if (f->takes_system) {
        json_t *system = json_pack("{s:s}", "role", "system");
        set_content(system, text.data, text.len);
        json_array_insert_new(messages, 0, system);
    } else {
        add_content(first, &text, false);
    }
    buf_done(&text);
}

/* Nine letters that are the same for the same id. */
static void shorten_id(json_t *object, const char *key)
{
    static const char letters[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    const json_t *id = json_object_get(object, key);
    char out[10] = {0};
    if (!json_is_string(id) || json_string_length(id) == 9)
        return;
    uint64_t hash = hash64_of(json_string_value(id), json_string_length(id), 0);
    for (int i = 0; i < 9; i++, hash /= sizeof letters - 1)
        out[i] = letters[hash % (sizeof letters - 1)];
    json_object_set_new(object, key, json_string(out));
}

static void shorten_ids(json_t *messages)
{
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i);
        json_t *calls = json_object_get(message, "tool_calls");
        for (size_t k = 0; k < json_array_size(calls); k++)
            shorten_id(json_array_get(calls, k), "id");
        shorten_id(message, "tool_call_id");
    }
}

void tool_format_messages(const struct tool_format *f, json_t *messages, const json_t *tools)
{
    if (f->short_ids)
        shorten_ids(messages);
    if (!f->renders_calls || (tools != NULL && !f->takes_tools)) {
        for (size_t i = 0; i < json_array_size(messages); i++)
            calls_as_text(json_array_get(messages, i));
        results_as_text(messages);
        join_user_turns(messages);
    }
    if (tools != NULL && !f->takes_tools)
        list_tools(f, messages, tools);
}

void tool_format_prefill(const struct tool_format *f, const char *name, struct buf *out)
{
    buf_puts(out, f->form->marker);
    buf_puts(out, f->form->open);
    if (name == NULL)
        return;
    buf_puts(out, name);
    /* A blank at the end of a prompt is a token that models do not know there: it belongs to what
     * comes next. */
    size_t len = strlen(f->form->middle);
    buf_append(out, f->form->middle, f->form->middle[len - 1] == ' ' ? len - 1 : len);
}
