/* Log-probabilities in answers: a list of token objects in chat, four parallel arrays in
 * completions, where `echo` puts the prompt's own tokens first. */
#include "daemon/api.h"

#include <string.h>

#include "daemon/api_field.h"
#include "daemon/json_out.h"

#define LOGPROB_FLOOR (-9999.0) /* what the public API sends for minus infinity */

static double finite_logprob(float v)
{
    double logprob = (double)v;
    return logprob >= LOGPROB_FLOOR ? BASE_MIN(logprob, 0.0) : LOGPROB_FLOOR;
}

static const char *token_bytes(const struct api_call *c, int32_t id, size_t *ret_len)
{
    const char *bytes = tokenizer_token_bytes(expert_tokenizer(c->expert), id, true, ret_len);
    if (bytes == NULL)
        *ret_len = 0;
    return bytes != NULL ? bytes : "";
}

uint32_t api_count_chars(const char *text, size_t len)
{
    uint32_t chars = 0;
    for (size_t i = 0; i < len; i++)
        chars += ((unsigned char)text[i] & 0xc0) != 0x80;
    return chars;
}

bool api_has_logprob(const struct api_call *c, const struct request_event *ev)
{
    return ev->token >= 0 && !(ev->finish == REQUEST_FINISH_STOP &&
                               tokenizer_is_eog(expert_tokenizer(c->expert), ev->token));
}

/* ---- chat ------------------------------------------------------------------------------------ */

static void put_token(const struct api_call *c, int32_t id, float logprob, struct buf *out)
{
    size_t len;
    const char *bytes = token_bytes(c, id, &len);
    buf_puts(out, "{\"token\":");
    json_put_text(out, bytes, len);
    buf_puts(out, ",\"logprob\":");
    json_put_real(out, finite_logprob(logprob), 7);
    buf_puts(out, ",\"bytes\":[");
    for (size_t i = 0; i < len; i++)
        buf_printf(out, i > 0 ? ",%u" : "%u", (unsigned)(unsigned char)bytes[i]);
    buf_puts(out, "]");
}

static void put_chat_logprob(const struct api_call *c, const struct request_event *ev,
                             struct buf *out)
{
    put_token(c, ev->token, ev->logprob, out);
    buf_puts(out, ",\"top_logprobs\":[");
    for (uint32_t i = 0; c->options.top_logprobs > 0 && i < ev->top_count; i++) {
        buf_puts(out, i > 0 ? "," : "");
        put_token(c, ev->top[i].id, ev->top[i].logprob, out);
        buf_puts(out, "}");
    }
    buf_puts(out, "]}");
}

static void put_chat_logprobs(const struct api_call *c, const struct request_event *events,
                              uint32_t count, struct buf *out)
{
    bool first = true;
    buf_puts(out, "{\"content\":[");
    for (uint32_t i = 0; i < count; i++) {
        if (!api_has_logprob(c, &events[i]))
            continue;
        buf_puts(out, first ? "" : ",");
        put_chat_logprob(c, &events[i], out);
        first = false;
    }
    buf_puts(out, "],\"refusal\":null}");
}

/* ---- completions ------------------------------------------------------------------------------
 */

/* Tokens at the head of a prompt that its text does not show: the start that the tokenizer adds, or
 * stands for an empty text. */
static size_t hidden_tokens(const struct api_call *c, size_t prompt_idx)
{
    const struct tokenizer *t = expert_tokenizer(c->expert);
    const json_t *text = api_prompt_text(c, prompt_idx);
    if (text == NULL)
        return 0;
    return (tokenizer_add_bos(t) && tokenizer_bos(t) >= 0) || json_string_length(text) == 0;
}

void api_echo_text(const struct api_call *c, size_t prompt_idx, struct buf *ret)
{
    const struct request *r = c->requests[prompt_idx];
    const json_t *text = api_prompt_text(c, prompt_idx);
    if (text != NULL) {
        buf_append(ret, json_string_value(text), json_string_length(text));
        return;
    }
    for (size_t i = 0; i < r->prompt.count; i++) {
        size_t len;
        const char *bytes = token_bytes(c, r->prompt.ids[i], &len);
        buf_append(ret, bytes, len);
    }
}

/* One token of the parallel arrays. */
struct entry {
    int32_t id;  /* -1: shown as nothing */
    bool scored; /* false: null, as there is nothing before it */
    float logprob;
    const struct token_logprob *top;
    uint32_t top_count, offset;
};

/* A piece of a character is written as its bytes, so that every token has a text of its own; so is
 * NUL, which not every reader takes in a name. */
static void put_token_text(const struct api_call *c, int32_t id, struct buf *out)
{
    size_t len = 0;
    const char *bytes = id >= 0 ? token_bytes(c, id, &len) : "";
    if (utf8_valid(bytes, len) && memchr(bytes, 0, len) == NULL) {
        json_put_text(out, bytes, len);
        return;
    }
    buf_puts(out, "\"bytes:");
    for (size_t i = 0; i < len; i++)
        buf_printf(out, "\\\\x%02x", (unsigned)(unsigned char)bytes[i]);
    buf_puts(out, "\"");
}

static bool same_text(const struct api_call *c, int32_t a, int32_t b)
{
    size_t a_len, b_len;
    const char *a_bytes = token_bytes(c, a, &a_len), *b_bytes = token_bytes(c, b, &b_len);
    return a_len == b_len && memcmp(a_bytes, b_bytes, a_len) == 0;
}

/* An object has one place for each text: of tokens that look alike the likelier one is shown. */
static bool shown_before(const struct api_call *c, const struct entry *at, uint32_t i)
{
    for (uint32_t k = 0; k < i; k++)
        if (same_text(c, at->top[k].id, at->top[i].id))
            return true;
    return false;
}

static void put_top_object(const struct api_call *c, const struct entry *at, struct buf *out)
{
    bool first = true;
    buf_puts(out, "{");
    for (uint32_t i = 0; i < at->top_count && at->top[i].id >= 0; i++) {
        if (shown_before(c, at, i))
            continue;
        buf_puts(out, first ? "" : ",");
        put_token_text(c, at->top[i].id, out);
        buf_puts(out, ":");
        json_put_real(out, finite_logprob(at->top[i].logprob), 7);
        first = false;
    }
    buf_puts(out, "}");
}

enum list { LIST_TOKENS, LIST_LOGPROBS, LIST_TOP, LIST_OFFSETS };

static void put_entry(const struct api_call *c, const struct entry *at, enum list which, bool first,
                      struct buf *out)
{
    buf_puts(out, first ? "" : ",");
    if (which == LIST_TOKENS)
        put_token_text(c, at->id, out);
    else if (which == LIST_OFFSETS)
        buf_printf(out, "%u", at->offset);
    else if (!at->scored)
        buf_puts(out, "null");
    else if (which == LIST_LOGPROBS)
        json_put_real(out, finite_logprob(at->logprob), 7);
    else
        put_top_object(c, at, out);
}

/* Characters that the tokens have more than the echoed text: some vocabularies put a blank before
 * the first word, which no client has written. */
static uint32_t surplus_chars(const struct api_call *c, const struct api_scored *s, size_t hidden)
{
    uint32_t chars = 0;
    for (size_t i = hidden; i < s->prompt->prompt.count; i++) {
        size_t len;
        const char *bytes = token_bytes(c, s->prompt->prompt.ids[i], &len);
        chars += api_count_chars(bytes, len);
    }
    return chars > s->chars ? chars - s->chars : 0;
}

/* Returns true if it wrote something. */
static bool put_prompt_list(const struct api_call *c, const struct api_scored *s, enum list which,
                            struct buf *out)
{
    const struct request *r = s->prompt;
    size_t count = r != NULL ? r->prompt.count : 0;
    size_t hidden = count > 0 ? hidden_tokens(c, s->prompt_idx) : 0;
    uint32_t surplus = count > 0 ? surplus_chars(c, s, hidden) : 0, chars = 0;
    for (size_t i = 0; i < count; i++) {
        size_t len;
        const char *bytes = token_bytes(c, r->prompt.ids[i], &len);
        struct entry at = {.id = i < hidden ? -1 : r->prompt.ids[i],
                           .scored = i > 0,
                           .logprob = r->scores.logprob[i],
                           .top_count = r->scores.top_count,
                           .offset = chars > surplus ? chars - surplus : 0};
        if (at.top_count > 0)
            at.top = r->scores.top + i * at.top_count;
        put_entry(c, &at, which, i == 0, out);
        chars += i < hidden ? 0 : api_count_chars(bytes, len);
    }
    return count > 0;
}

static void put_list(const struct api_call *c, const struct api_scored *s, enum list which,
                     struct buf *out)
{
    bool first = !put_prompt_list(c, s, which, out);
    uint32_t chars = s->chars;
    for (uint32_t i = 0; i < s->count; i++) {
        const struct request_event *ev = &s->events[i];
        if (api_has_logprob(c, ev)) {
            struct entry at = {.id = ev->token,
                               .scored = true,
                               .logprob = ev->logprob,
                               .top = ev->top,
                               .top_count = ev->top_count,
                               .offset = chars};
            put_entry(c, &at, which, first, out);
            first = false;
        }
        chars += api_count_chars(ev->text, ev->text_len);
    }
}

static void put_completion_logprobs(const struct api_call *c, const struct api_scored *s,
                                    struct buf *out)
{
    buf_puts(out, "{\"tokens\":[");
    put_list(c, s, LIST_TOKENS, out);
    buf_puts(out, "],\"token_logprobs\":[");
    put_list(c, s, LIST_LOGPROBS, out);
    buf_puts(out, "],\"top_logprobs\":");
    if (c->options.top_logprobs > 0) {
        buf_puts(out, "[");
        put_list(c, s, LIST_TOP, out);
        buf_puts(out, "]");
    } else {
        buf_puts(out, "null");
    }
    buf_puts(out, ",\"text_offset\":[");
    put_list(c, s, LIST_OFFSETS, out);
    buf_puts(out, "]}");
}

void api_put_logprobs(const struct api_call *c, const struct api_scored *s, struct buf *out)
{
    if (c->kind == API_CHAT)
        put_chat_logprobs(c, s->events, s->count, out);
    else
        put_completion_logprobs(c, s, out);
}
