/* Answers: whole bodies, and the events of streams. Chunks of one stream share their first fields,
 * which are written once (api_call.head); the rest is copied or escaped straight into the output.
 */
#include "daemon/api.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/json_out.h"

/* A slow reader's backlog is written in pieces of about this size. */
#define EVENTS_BYTES (64 * BASE_KIB)

/* ---- usage, account, timings ---------------------------------------------------------------- */

static void put_usage(const struct api_call *c, struct buf *out)
{
    struct api_usage u;
    api_call_usage(c, &u);
    buf_printf(out,
               "\"usage\":{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%llu},"
               "\"completion_tokens_details\":{\"reasoning_tokens\":0}}",
               (unsigned long long)u.prompt_tokens, (unsigned long long)u.completion_tokens,
               (unsigned long long)(u.prompt_tokens + u.completion_tokens),
               (unsigned long long)u.cached_tokens);
}

static void put_ms_field(struct buf *out, const char *name, uint64_t ns)
{
    buf_printf(out, ",\"%s\":", name);
    json_put_ms(out, ns);
}

void api_put_account(const struct api_call *c, struct buf *out)
{
    buf_puts(out, "\"expert\":");
    json_put_str(out, c->expert != NULL ? expert_info(c->expert)->name : NULL);
    if (c->expert == NULL)
        return;
    buf_puts(out, ",\"reason\":");
    json_put_str(out, router_reason_name(c->reason));
    buf_puts(out, ",\"confidence\":");
    json_put_real(out, c->confidence, 4);
    put_ms_field(out, "route_ms", c->route_ns);
    if (c->requests_count == 0 || atomic_load(&c->given) < c->requests_count || !api_call_done(c))
        return;
    struct api_usage u;
    const struct request_account *a = &c->requests[0]->account;
    uint64_t node_ns = 0;
    api_call_usage(c, &u);
    for (size_t i = 0; i < c->requests_count; i++)
        node_ns += c->requests[i]->account.node_ns;
    put_ms_field(out, "queue_ms", a->queue_ns);
    put_ms_field(out, "load_ms", a->load_ns);
    buf_printf(out, ",\"load_bytes\":%llu,\"origin\":\"%s\",\"switched\":%s",
               (unsigned long long)a->load_bytes, memtier_tier_name(a->origin),
               a->switched ? "true" : "false");
    put_ms_field(out, "prefill_ms", a->prefill_ns);
    put_ms_field(out, "decode_ms", a->decode_ns);
    if (a->first_token_ns > a->received_ns)
        put_ms_field(out, "ttft_ms", a->first_token_ns - a->received_ns);
    buf_printf(out, ",\"prompt_tokens\":%llu,\"cached_tokens\":%llu,\"completion_tokens\":%llu",
               (unsigned long long)u.prompt_tokens, (unsigned long long)u.cached_tokens,
               (unsigned long long)u.completion_tokens);
    put_ms_field(out, "node_ms", node_ns);
}

static void put_rate(struct buf *out, const char *prefix, uint64_t tokens, uint64_t ns)
{
    double ms = (double)ns / 1e6;
    buf_printf(out,
               "\"%s_n\":%llu,\"%s_ms\":%.3f,\"%s_per_token_ms\":%.3f,"
               "\"%s_per_second\":%.3f",
               prefix, (unsigned long long)tokens, prefix, ms, prefix,
               tokens > 0 ? ms / (double)tokens : 0.0, prefix,
               ns > 0 ? (double)tokens / ((double)ns / 1e9) : 0.0);
}

/* Field names as llama.cpp's server has them: tools that compare servers read these. */
static void put_timings(const struct api_call *c, struct buf *out)
{
    struct api_usage u;
    const struct request_account *a = &c->requests[0]->account;
    api_call_usage(c, &u);
    buf_printf(out, ",\"timings\":{\"cache_n\":%llu,", (unsigned long long)u.cached_tokens);
    put_rate(out, "prompt", u.prompt_tokens - BASE_MIN(u.cached_tokens, u.prompt_tokens),
             a->prefill_ns);
    buf_puts(out, ",");
    put_rate(out, "predicted", u.completion_tokens, a->decode_ns);
    buf_puts(out, "}");
}

static void put_extras(const struct api_call *c, struct buf *out)
{
    if (c->options.want_timings)
        put_timings(c, out);
    if (!c->options.want_account)
        return;
    buf_puts(out, ",\"x_switchyard\":{");
    api_put_account(c, out);
    buf_puts(out, "}");
}

/* ---- whole answers -------------------------------------------------------------------------- */

static void put_head(const struct api_call *c, const char *object, struct buf *out)
{
    buf_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%llu,\"model\":", c->id, object,
               (unsigned long long)c->created_s);
    json_put_str(out, expert_info(c->expert)->name);
    buf_puts(out, ",\"system_fingerprint\":\"switchyard-" SWITCHYARD_VERSION "\"");
}

/* The prompt's text again, for `echo`; how many characters it has. */
static uint32_t put_echo(const struct api_call *c, size_t prompt_idx, struct buf *out)
{
    struct buf text = {0};
    if (c->options.echo)
        api_echo_text(c, prompt_idx, &text);
    json_put_escaped(out, text.data != NULL ? text.data : "", text.len);
    uint32_t chars = api_count_chars(text.data, text.len);
    buf_done(&text);
    return chars;
}

static void put_logprobs(const struct api_call *c, const struct api_scored *s, struct buf *out)
{
    buf_puts(out, ",\"logprobs\":");
    if (c->options.want_logprobs)
        api_put_logprobs(c, s, out);
    else
        buf_puts(out, "null");
}

/* A call is the reason, wherever an answer ended by itself. */
static const char *finish_name(enum request_finish finish, bool calls)
{
    return calls && finish == REQUEST_FINISH_STOP ? "tool_calls" : request_finish_name(finish);
}

/* Message or text of a choice as it came. Returns the characters of the echoed prompt. */
static uint32_t put_text(const struct api_call *c, size_t prompt_idx,
                         const struct request_choice *choice, uint32_t count, struct buf *out)
{
    buf_puts(out, c->kind == API_CHAT ? "\"message\":{\"role\":\"assistant\",\"content\":\""
                                      : "\"text\":\"");
    uint32_t chars = put_echo(c, prompt_idx, out);
    for (uint32_t i = 0; i < count; i++)
        json_put_escaped(out, choice->events[i].text, choice->events[i].text_len);
    buf_puts(out, c->kind == API_CHAT ? "\",\"refusal\":null}" : "\"");
    return chars;
}

static void put_choice(const struct api_call *c, size_t prompt_idx, uint32_t choice_idx,
                       uint32_t index, struct buf *out)
{
    const struct request *r = c->requests[prompt_idx];
    const struct request_choice *choice = &r->choice[choice_idx];
    uint32_t count = request_events(choice);
    uint32_t chars = 0;
    bool calls = false;
    buf_printf(out, "{\"index\":%u,", index);
    if (c->tools.list != NULL) {
        buf_puts(out, "\"message\":");
        calls = api_put_tool_message(c, choice, out);
    } else {
        chars = put_text(c, prompt_idx, choice, count, out);
    }
    put_logprobs(c,
                 &(struct api_scored){.prompt = c->options.echo ? r : NULL,
                                      .prompt_idx = prompt_idx,
                                      .chars = chars,
                                      .events = choice->events,
                                      .count = count},
                 out);
    buf_printf(out, ",\"finish_reason\":\"%s\"}",
               finish_name(choice->events[count - 1].finish, calls));
}

enum err_code api_call_render(struct api_call *c, struct buf *out, struct err *e)
{
    enum err_code code = api_call_outcome(c, e);
    uint32_t index = 0;
    if (code != ERR_OK)
        return code;
    put_head(c, c->kind == API_CHAT ? "chat.completion" : "text_completion", out);
    buf_puts(out, ",\"choices\":[");
    for (size_t i = 0; i < c->requests_count; i++) {
        for (uint32_t k = 0; k < c->requests[i]->choices_count; k++) {
            buf_puts(out, index > 0 ? "," : "");
            put_choice(c, i, k, index++, out);
        }
    }
    buf_puts(out, "],");
    put_usage(c, out);
    put_extras(c, out);
    buf_puts(out, "}");
    return ERR_OK;
}

/* ---- streams -------------------------------------------------------------------------------- */

static void open_chunk(struct api_call *c, uint32_t index, struct buf *out)
{
    if (c->head.len == 0) {
        put_head(c, c->kind == API_CHAT ? "chat.completion.chunk" : "text_completion", &c->head);
        buf_puts(&c->head, ",\"choices\":[");
    }
    buf_puts(out, "data: ");
    buf_append(out, c->head.data, c->head.len);
    buf_printf(out, "{\"index\":%u", index);
}

/* With include_usage every chunk but the last says that it has none. */
static void close_chunk(const struct api_call *c, const char *finish, struct buf *out)
{
    buf_puts(out, ",\"finish_reason\":");
    json_put_str(out, finish);
    buf_puts(out, c->options.include_usage ? "}],\"usage\":null" : "}]");
}

static void put_role_chunk(struct api_call *c, uint32_t index, struct buf *out)
{
    open_chunk(c, index, out);
    buf_puts(out, ",\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null}");
    buf_puts(out, ",\"logprobs\":null");
    close_chunk(c, NULL, out);
    buf_puts(out, "}\n\n");
}

/* Returns the characters of the prompt: the answer's offsets go on from there. */
static uint32_t put_echo_chunk(struct api_call *c, size_t prompt_idx, uint32_t index,
                               struct buf *out)
{
    open_chunk(c, index, out);
    buf_puts(out, ",\"text\":\"");
    uint32_t chars = put_echo(c, prompt_idx, out);
    buf_puts(out, "\"");
    put_logprobs(c,
                 &(struct api_scored){
                     .prompt = c->requests[prompt_idx], .prompt_idx = prompt_idx, .chars = chars},
                 out);
    close_chunk(c, NULL, out);
    buf_puts(out, "}\n\n");
    return chars;
}

static void put_text_chunk(struct api_call *c, const struct request_event *ev, uint32_t index,
                           uint32_t chars, struct buf *out)
{
    open_chunk(c, index, out);
    buf_puts(out, c->kind == API_CHAT ? ",\"delta\":{\"content\":\"" : ",\"text\":\"");
    json_put_escaped(out, ev->text, ev->text_len);
    buf_puts(out, c->kind == API_CHAT ? "\"}" : "\"");
    put_logprobs(c, &(struct api_scored){.chars = chars, .events = ev, .count = 1}, out);
    close_chunk(c, NULL, out);
    buf_puts(out, "}\n\n");
}

/* One chunk of a choice that may call functions. */
struct tool_chunk {
    struct api_call *call;
    const struct request_event *ev; /* NULL = its log-probabilities were given already */
    uint32_t index;
    struct buf *out;
};

static void put_tool_chunk(void *ctx, const struct buf *delta)
{
    struct tool_chunk *t = ctx;
    open_chunk(t->call, t->index, t->out);
    buf_puts(t->out, ",\"delta\":");
    buf_append(t->out, delta->data, delta->len);
    if (t->ev != NULL)
        put_logprobs(t->call, &(struct api_scored){.events = t->ev, .count = 1}, t->out);
    else
        buf_puts(t->out, ",\"logprobs\":null");
    t->ev = NULL;
    close_chunk(t->call, NULL, t->out);
    buf_puts(t->out, "}\n\n");
}

/* An event of text that is held back has its log-probabilities in a chunk without any. */
static void put_tool_chunks(struct api_call *c, struct api_cursor *cur,
                            const struct request_event *ev, uint32_t index, struct buf *out)
{
    bool scored = c->options.want_logprobs && api_has_logprob(c, ev);
    struct tool_chunk t = {.call = c, .ev = scored ? ev : NULL, .index = index, .out = out};
    struct buf nothing = {0};
    api_put_tool_deltas(c, cur, ev, put_tool_chunk, &t);
    if (t.ev == NULL)
        return;
    buf_puts(&nothing, "{}");
    put_tool_chunk(&t, &nothing);
    buf_done(&nothing);
}

static void put_finish_chunk(struct api_call *c, const char *finish, uint32_t index, bool last,
                             struct buf *out)
{
    open_chunk(c, index, out);
    buf_puts(out, c->kind == API_CHAT ? ",\"delta\":{}" : ",\"text\":\"\"");
    buf_puts(out, ",\"logprobs\":null");
    close_chunk(c, finish, out);
    if (last && !c->options.include_usage)
        put_extras(c, out);
    buf_puts(out, "}\n\n");
}

static void put_usage_chunk(struct api_call *c, struct buf *out)
{
    buf_puts(out, "data: ");
    buf_append(out, c->head.data, c->head.len);
    buf_puts(out, "],");
    put_usage(c, out);
    put_extras(c, out);
    buf_puts(out, "}\n\n");
}

static bool put_error_event(struct api_call *c, struct buf *out)
{
    struct err e = {0};
    api_call_outcome(c, &e);
    buf_puts(out, "data: ");
    api_put_error(out, &e);
    buf_puts(out, "\n\n");
    c->failed = true;
    return true;
}

/* What is new of one choice; stops early when `out` is large. */
static void put_new_events(struct api_call *c, size_t prompt_idx, uint32_t choice_idx,
                           uint32_t index, struct buf *out)
{
    struct api_cursor *cur = &c->cursor[prompt_idx][choice_idx];
    const struct request *r = c->requests[prompt_idx];
    const struct request_choice *choice = &r->choice[choice_idx];
    uint32_t count = request_events(choice);
    /* The prompt's scores are the first choice's work. */
    if (r->score_prompt && request_events(&r->choice[0]) == 0)
        return;
    for (; cur->events_read < count && out->len < EVENTS_BYTES; cur->events_read++) {
        const struct request_event *ev = &choice->events[cur->events_read];
        if (!cur->opened && c->kind == API_CHAT)
            put_role_chunk(c, index, out);
        else if (!cur->opened && c->options.echo)
            cur->text_chars = put_echo_chunk(c, prompt_idx, index, out);
        cur->opened = true;
        if (c->tools.list != NULL)
            put_tool_chunks(c, cur, ev, index, out);
        else if (ev->text_len > 0 || (c->options.want_logprobs && api_has_logprob(c, ev)))
            put_text_chunk(c, ev, index, cur->text_chars, out);
        cur->text_chars += api_count_chars(ev->text, ev->text_len);
        cur->finish = ev->finish;
    }
}

/* Finish chunks of choices that have ended. The last one waits for the whole call, so that the
 * account it may carry is complete. `done`: the call was over before its events were read, so that
 * a choice without an end will never have one. Returns how many choices still owe their chunk. */
static uint32_t put_finishes(struct api_call *c, bool done, bool *ret_error, struct buf *out)
{
    uint32_t index = 0, owed = 0;
    for (size_t i = 0; i < c->requests_count; i++)
        for (uint32_t k = 0; k < c->requests[i]->choices_count; k++)
            owed += !c->cursor[i][k].finish_sent;
    for (size_t i = 0; i < c->requests_count; i++) {
        for (uint32_t k = 0; k < c->requests[i]->choices_count; k++, index++) {
            struct api_cursor *cur = &c->cursor[i][k];
            *ret_error |= done && cur->finish == REQUEST_FINISH_NONE && out->len < EVENTS_BYTES;
            if (cur->finish_sent || cur->finish == REQUEST_FINISH_NONE)
                continue;
            if (cur->finish != REQUEST_FINISH_STOP && cur->finish != REQUEST_FINISH_LENGTH) {
                *ret_error = true;
                continue;
            }
            if (owed == 1 && !done)
                continue;
            put_finish_chunk(c, finish_name(cur->finish, cur->calls > 0), index, owed == 1, out);
            cur->finish_sent = true;
            owed--;
        }
    }
    return owed;
}

bool api_call_render_events(struct api_call *c, struct buf *out)
{
    uint32_t index = 0;
    bool error = false, done = api_call_done(c);
    for (size_t i = 0; i < c->requests_count; i++)
        for (uint32_t k = 0; k < c->requests[i]->choices_count; k++)
            put_new_events(c, i, k, index++, out);
    uint32_t owed = put_finishes(c, done, &error, out);
    /* The error is complete once every request is done; until then the other choices go on. */
    if (error && done)
        return put_error_event(c, out);
    if (owed > 0)
        return false;
    if (c->options.include_usage)
        put_usage_chunk(c, out);
    buf_puts(out, "data: [DONE]\n\n");
    return true;
}

/* ---- errors
 * -----------------------------------------------------------------------------------------------
 */

const char *api_error_type(enum err_code code)
{
    switch (err_http_status(code)) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 429:
        return "rate_limit_error";
    case 503:
        return "overloaded_error";
    default:
        return err_http_status(code) < 500 ? "invalid_request_error" : "server_error";
    }
}

void api_put_error(struct buf *out, const struct err *e)
{
    buf_puts(out, "{\"error\":{\"message\":");
    json_put_str(out, e->msg[0] != 0 ? e->msg : "the request failed");
    buf_printf(out, ",\"type\":\"%s\",\"param\":", api_error_type(e->code));
    json_put_str(out, e->param[0] != 0 ? e->param : NULL);
    buf_printf(out, ",\"code\":\"%s\"}}", err_code_name(e->code));
}
