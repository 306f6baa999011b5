/* From conversation to tokens: system prompt, template, tokenizer. The scheduler only ever sees
 * tokens. */
#include "daemon/api.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/api_field.h"
#include "daemon/api_guard.h"

/* Appended, as tokenizer_encode does. */
void api_push_token(struct token_list *l, int32_t id)
{
    if (l->count == l->cap) {
        l->cap = BASE_MAX(l->cap * 2, 64);
        l->ids = mem_grow(l->ids, l->cap, sizeof *l->ids);
    }
    l->ids[l->count++] = id;
}

static void put_bos_first(struct token_list *l, int32_t bos)
{
    api_push_token(l, bos);
    memmove(l->ids + 1, l->ids, (l->count - 1) * sizeof *l->ids);
    l->ids[0] = bos;
}

/* A NUL-terminated copy of a token's text, "" for none; the caller frees. */
static char *token_text(const struct tokenizer *t, int32_t id)
{
    size_t len = 0;
    const char *text = id >= 0 ? tokenizer_token_bytes(t, id, true, &len) : NULL;
    return mem_strndup(text != NULL ? text : "", text != NULL ? len : 0);
}

/* Megabytes of text need not be tokenised to know that they do not fit, which would keep every
 * other connection of this thread waiting. Four times the bytes that could fit: normalisation may
 * shrink text before it is cut into tokens. */
static enum err_code check_length(const struct api_call *c, size_t bytes, struct err *e)
{
    const struct server_expert *serving = server_expert_of(c->server, c->expert);
    size_t least = bytes / guard_longest_token(serving->guard) / 4;
    const char *param = c->kind == API_CHAT ? "messages" : "prompt";
    if (least < serving->context)
        return ERR_OK;
    return err_set_param(e, ERR_CONTEXT, param,
                         "expert '%s' has a context of %u tokens, but the %s have %zu bytes, which "
                         "is more than %zu tokens: shorten them",
                         expert_info(c->expert)->name, serving->context, param, bytes, least);
}

/* ---- rendering ------------------------------------------------------------------------------ */

struct render {
    json_t *messages, *tools; /* owned; marked where the guard says so */
    char mark[GUARD_MARK_BYTES + 1];
    bool marked;
};

/* What the template is given to list; others read of them in the system message. */
static json_t *tools_of(const struct api_call *c)
{
    return c->tools.format->takes_tools ? c->tools.list : NULL;
}

static void render_init(struct render *r, const struct api_call *c, const struct guard *guard)
{
    const struct api_messages *m = &c->messages;
    json_t *tools = tools_of(c);
    *r = (struct render){.messages = json_incref(m->messages), .tools = json_incref(tools)};
    if (!guard_touches(guard, m->messages) && !(tools && guard_touches(guard, tools)))
        return;
    json_t *both = json_pack("[O,O*]", m->messages, tools);
    guard_pick_mark(both, r->mark);
    json_decref(both);
    json_decref(r->messages);
    json_decref(r->tools);
    r->messages = guard_mark(guard, m->messages, r->mark);
    r->tools = tools != NULL ? guard_mark(guard, tools, r->mark) : NULL;
    r->marked = true;
}

static void render_done(struct render *r)
{
    json_decref(r->messages);
    json_decref(r->tools);
}

static enum err_code render_once(const struct api_call *c, const struct chat_template *template,
                                 const struct render *r, struct buf *text, struct err *e)
{
    const struct tokenizer *t = expert_tokenizer(c->expert);
    char *messages = json_dumps(r->messages, JSON_COMPACT);
    char *tools = r->tools != NULL ? json_dumps(r->tools, JSON_COMPACT) : NULL;
    char *extra =
        c->messages.variables != NULL ? json_dumps(c->messages.variables, JSON_COMPACT) : NULL;
    char *bos = token_text(t, tokenizer_bos(t)), *eos = token_text(t, tokenizer_eos(t));
    const struct template_input input = {
        .messages_json = messages,
        .tools_json = tools,
        .extra_json = extra,
        .add_generation_prompt = true,
        .bos_token = bos,
        .eos_token = eos,
        .now = (int64_t)(clock_wall_ms() / 1000),
    };
    enum err_code code = messages != NULL ? template_render(template, &input, text, e)
                                          : err_set_param(e, ERR_INVALID, "messages",
                                                          "'messages' cannot be written as JSON");
    free(messages);
    free(tools);
    free(extra);
    free(bos);
    free(eos);
    return code;
}

/* Tool arguments as text again, for templates that add them to a string; false if there are none.
 */
static bool arguments_as_text(json_t *messages)
{
    bool changed = false;
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *calls = json_object_get(json_array_get(messages, i), "tool_calls");
        for (size_t k = 0; k < json_array_size(calls); k++) {
            json_t *function = json_object_get(json_array_get(calls, k), "function");
            json_t *arguments = json_object_get(function, "arguments");
            if (!json_is_object(arguments))
                continue;
            char *text = json_dumps(arguments, 0);
            json_object_set_new(function, "arguments", json_string(text));
            free(text);
            changed = true;
        }
    }
    return changed;
}

static enum err_code render_text(const struct api_call *c, const struct chat_template *template,
                                 struct render *r, struct buf *text, struct err *e)
{
    enum err_code code = render_once(c, template, r, text, e);
    if (code == ERR_OK)
        return ERR_OK;
    /* Templates disagree whether arguments are an object or text, and cannot be asked. */
    json_t *copy = json_deep_copy(r->messages);
    if (arguments_as_text(copy)) {
        struct err second = {0};
        json_decref(r->messages);
        r->messages = copy;
        buf_clear(text);
        if (render_once(c, template, r, text, &second) == ERR_OK)
            return ERR_OK;
    } else {
        json_decref(copy);
    }
    if (e->param[0] == 0)
        snprintf(e->param, sizeof e->param, "messages");
    return err_wrap(e, "the template of expert '%s' refuses these messages",
                    expert_info(c->expert)->name);
}

static void put_system_first(struct api_call *c, const char *system)
{
    if (c->messages.has_system || system[0] == 0)
        return;
    json_array_insert_new(c->messages.messages, 0,
                          json_pack("{s:s,s:s}", "role", "system", "content", system));
    c->messages.has_system = true;
}

static size_t content_bytes(const json_t *messages)
{
    size_t bytes = 0;
    for (size_t i = 0; i < json_array_size(messages); i++)
        bytes += json_string_length(json_object_get(json_array_get(messages, i), "content"));
    return bytes;
}

/* Marks, renders and tokenises: everything whose cost grows with the text. */
static enum err_code render_and_encode(struct api_call *c, const struct server_expert *serving,
                                       struct token_list *ret, struct err *e)
{
    struct render r;
    struct buf text = {0};
    render_init(&r, c, serving->guard);
    enum err_code code = render_text(c, serving->template, &r, &text, e);
    if (code == ERR_OK)
        api_tools_put_prefill(c, &text);
    if (code == ERR_OK)
        code = check_length(c, text.len, e);
    if (code == ERR_OK)
        code = guard_encode(expert_tokenizer(c->expert), text.data != NULL ? text.data : "",
                            text.len, r.marked ? r.mark : NULL, ret, e);
    render_done(&r);
    buf_done(&text);
    return code;
}

/* System prompt and functions are put in; ERR_CONTEXT where it is far too long. */
static enum err_code prepare_messages(struct api_call *c, const struct server_expert *serving,
                                      struct err *e)
{
    if (serving->template == NULL)
        return err_set_param(e, ERR_UNSUPPORTED, "model",
                             "expert '%s' has no chat template; set `template` of the expert in "
                             "the configuration, or use /v1/completions",
                             expert_info(c->expert)->name);
    put_system_first(c, serving->system);
    tool_format_messages(c->tools.format, c->messages.messages, c->tools.list);
    return check_length(c, content_bytes(c->messages.messages), e);
}

enum err_code api_chat_text(struct api_call *c, struct buf *ret, struct err *e)
{
    const struct server_expert *serving = server_expert_of(c->server, c->expert);
    enum err_code code = prepare_messages(c, serving, e);
    if (code != ERR_OK)
        return code;
    struct render r = {.messages = json_incref(c->messages.messages),
                       .tools = json_incref(tools_of(c))};
    code = render_text(c, serving->template, &r, ret, e);
    if (code == ERR_OK)
        api_tools_put_prefill(c, ret);
    render_done(&r);
    return code;
}

enum err_code api_chat_tokens(struct api_call *c, struct token_list *ret, struct err *e)
{
    const struct server_expert *serving = server_expert_of(c->server, c->expert);
    const struct tokenizer *t = expert_tokenizer(c->expert);
    enum err_code code = prepare_messages(c, serving, e);
    if (code == ERR_OK)
        code = render_and_encode(c, serving, ret, e);
    /* Templates that write the token themselves are left alone. */
    if (code == ERR_OK && tokenizer_add_bos(t) && tokenizer_bos(t) >= 0 &&
        (ret->count == 0 || ret->ids[0] != tokenizer_bos(t)))
        put_bos_first(ret, tokenizer_bos(t));
    return code;
}

/* ---- plain prompts -------------------------------------------------------------------------- */

static bool is_token_array(const json_t *v)
{
    return json_is_array(v) && json_array_size(v) > 0 && json_is_integer(json_array_get(v, 0));
}

size_t api_prompts(const json_t *root, struct err *e)
{
    const json_t *prompt = field_find(root, "prompt");
    if (prompt == NULL) {
        err_set_param(e, ERR_INVALID, "prompt", "'prompt' is missing");
        return 0;
    }
    if (json_is_string(prompt) || is_token_array(prompt))
        return 1;
    size_t count = json_array_size(prompt);
    if (!json_is_array(prompt)) {
        field_bad_type(e, "prompt", "a string, an array of strings or an array of tokens", prompt);
        return 0;
    }
    if (count == 0 || count > API_PROMPTS_MAX) {
        err_set_param(e, ERR_INVALID, "prompt", "'prompt' has %zu items, but must have 1 to %d",
                      count, API_PROMPTS_MAX);
        return 0;
    }
    return count;
}

static const json_t *prompt_at(const struct api_call *c, size_t prompt_idx)
{
    const json_t *prompt = field_find(c->root, "prompt");
    bool many = json_is_array(prompt) && !is_token_array(prompt);
    return many ? json_array_get(prompt, prompt_idx) : prompt;
}

const json_t *api_prompt_text(const struct api_call *c, size_t prompt_idx)
{
    const json_t *prompt = prompt_at(c, prompt_idx);
    return json_is_string(prompt) ? prompt : NULL;
}

static enum err_code array_tokens(const struct tokenizer *t, const json_t *array,
                                  struct token_list *ret, struct err *e)
{
    int32_t vocab = tokenizer_vocab(t);
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *v = json_array_get(array, i);
        if (!json_is_integer(v))
            return field_bad_type(e, "prompt", "an array of token ids only", v);
        int64_t id = json_integer_value(v);
        if (id < 0 || id >= vocab)
            return err_set_param(e, ERR_INVALID, "prompt",
                                 "'prompt' has the token %lld, but the expert's vocabulary ends "
                                 "at %d",
                                 (long long)id, vocab - 1);
        api_push_token(ret, (int32_t)id);
    }
    return ERR_OK;
}

static enum err_code text_tokens(const struct api_call *c, const json_t *text,
                                 struct token_list *ret, struct err *e)
{
    const struct tokenizer *t = expert_tokenizer(c->expert);
    enum err_code code = check_length(c, json_string_length(text), e);
    if (code != ERR_OK)
        return code;
    if (tokenizer_add_bos(t) && tokenizer_bos(t) >= 0)
        api_push_token(ret, tokenizer_bos(t));
    /* A plain prompt is the client's own: it may write control tokens, as it may send their ids. */
    return tokenizer_encode(t, json_string_value(text), json_string_length(text), true, ret, e);
}

enum err_code api_completion_tokens(struct api_call *c, size_t prompt_idx, struct token_list *ret,
                                    struct err *e)
{
    const struct tokenizer *t = expert_tokenizer(c->expert);
    const json_t *prompt = prompt_at(c, prompt_idx);
    enum err_code code;
    if (json_is_string(prompt))
        code = text_tokens(c, prompt, ret, e);
    else if (json_is_array(prompt))
        code = array_tokens(t, prompt, ret, e);
    else
        code = field_bad_type(e, "prompt", "made of strings or of arrays of tokens", prompt);
    if (code != ERR_OK || ret->count > 0)
        return code;
    /* Something must come before the first token; the end-of-text token is what models learnt. */
    int32_t start = tokenizer_bos(t) >= 0 ? tokenizer_bos(t) : tokenizer_eos(t);
    if (start < 0)
        return err_set_param(e, ERR_INVALID, "prompt", "'prompt' is empty");
    api_push_token(ret, start);
    return ERR_OK;
}
