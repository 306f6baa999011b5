/* See text.h. */
#include "tests/unit/experts/text/text.h"

#include <stdio.h>

#include "experts/gguf.h"

/* ---- files ----------------------------------------------------------------------------------- */

bool text_each_line(const char *name, void (*line)(void *ctx, const json_t *object), void *ctx)
{
    char *path = unit_shared(name);
    if (path == NULL)
        return false;
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    char *text = NULL;
    size_t cap = 0;
    ssize_t len;
    size_t count = 0;
    while ((len = getline(&text, &cap, f)) > 0) {
        if (text[0] == '\n')
            continue;
        json_error_t error;
        json_t *object = json_loadb(text, (size_t)len, JSON_ALLOW_NUL, &error);
        if (object == NULL)
            fail_msg("%s: line %zu: %s", name, count + 1, error.text);
        line(ctx, object);
        json_decref(object);
        count++;
    }
    free(text);
    fclose(f);
    free(path);
    assert_true(count > 0);
    return true;
}

const char *text_member(const json_t *object, const char *key, size_t *ret_len)
{
    const json_t *s = json_object_get(object, key);
    if (!json_is_string(s))
        fail_msg("member %s is no string", key);
    *ret_len = json_string_length(s);
    return json_string_value(s);
}

char *text_base64(const char *text, size_t *ret_len)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *out = mem_alloc(strlen(text) + 1);
    size_t n = 0;
    uint32_t bits = 0;
    unsigned have = 0;
    for (; *text != '\0' && *text != '='; text++) {
        const char *at = strchr(digits, *text);
        assert_non_null(at);
        bits = bits << 6 | (uint32_t)(at - digits);
        have += 6;
        if (have >= 8) {
            have -= 8;
            out[n++] = (char)(bits >> have);
        }
    }
    *ret_len = n;
    return out;
}

const char *text_show(const char *s, size_t len, char out[240])
{
    size_t n = 0;
    for (size_t i = 0; i < len && n < 230; i++) {
        unsigned char c = (unsigned char)s[i];
        n += (size_t)snprintf(out + n, 240 - n, c >= 0x20 && c < 0x7F ? "%c" : "\\x%02x", c);
    }
    out[n] = '\0';
    return out;
}

/* ---- vocabularies ---------------------------------------------------------------------------- */

static void made_numbers(struct made *m, const char *key, uint32_t elem, const void *values,
                         uint64_t count)
{
    struct buf b = {0};
    buf_append(&b, &elem, sizeof(elem));
    buf_append(&b, &count, sizeof(count));
    buf_append(&b, values, (size_t)count * 4);
    made_kv(m, key, GGUF_ARRAY, b.data, b.len);
    buf_done(&b);
}

void made_vocab(struct made *m, const char *model, const struct made_token *tokens, size_t count)
{
    const char **texts = mem_array(count, sizeof(*texts));
    int32_t *types = mem_array(count, sizeof(*types));
    float *scores = mem_array(count, sizeof(*scores));
    for (size_t i = 0; i < count; i++) {
        texts[i] = tokens[i].text;
        types[i] = tokens[i].type == 0 ? 1 : tokens[i].type;
        scores[i] = tokens[i].score;
    }
    made_str(m, "tokenizer.ggml.model", model);
    made_strs(m, "tokenizer.ggml.tokens", texts, count);
    made_numbers(m, "tokenizer.ggml.token_type", GGUF_I32, types, count);
    made_numbers(m, "tokenizer.ggml.scores", GGUF_F32, scores, count);
    free(texts);
    free(types);
    free(scores);
}

/* GPT-2's character for a byte, written down here a second time on purpose. */
static uint32_t char_of_byte(unsigned byte)
{
    uint32_t others = 0x100;
    for (unsigned b = 0; b <= byte; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        if (b == byte)
            return printable ? b : others;
        others += !printable;
    }
    return 0;
}

void made_byte_vocab(struct made *m, const char *pre, const char *without,
                     const struct made_token *tokens, size_t count, const char *const *merges,
                     size_t merges_count)
{
    struct made_token *all = mem_array(256 + count, sizeof(*all));
    char(*texts)[8] = mem_array(256, sizeof(*texts));
    size_t n = 0;
    for (unsigned byte = 0; byte < 256; byte++) {
        if (byte != 0 && strchr(without, (int)byte) != NULL)
            continue;
        texts[byte][utf8_encode(char_of_byte(byte), texts[byte])] = '\0';
        all[n++].text = texts[byte];
    }
    for (size_t i = 0; i < count; i++)
        all[n++] = tokens[i];
    made_vocab(m, "gpt2", all, n);
    if (pre != NULL)
        made_str(m, "tokenizer.ggml.pre", pre);
    made_strs(m, "tokenizer.ggml.merges", merges, merges_count);
    free(texts);
    free(all);
}

enum err_code made_tokenizer(const struct made *m, struct tokenizer **ret, struct err *e)
{
    struct buf b = {0};
    struct gguf *g = NULL;
    made_header(m, &b);
    enum err_code rc = gguf_parse(b.data, b.len, UINT64_MAX, "made", &g, e);
    buf_done(&b);
    if (rc == ERR_OK)
        rc = tokenizer_open(g, ret, e);
    gguf_close(&g);
    return rc;
}

void text_expect_ids(const struct tokenizer *t, const char *text, size_t len, bool parse_special,
                     const int32_t *ids, size_t count)
{
    struct token_list l = {0};
    struct err e;
    char shown[240];
    unit_ok(tokenizer_encode(t, text, len, parse_special, &l, &e), &e);
    size_t same = 0;
    while (same < l.count && same < count && l.ids[same] == ids[same])
        same++;
    if (l.count != count || same != count)
        fail_msg("\"%s\": %zu ids for %zu, the first difference at %zu: %d for %d",
                 text_show(text, len, shown), l.count, count, same,
                 same < l.count ? l.ids[same] : -1, same < count ? ids[same] : -1);
    free(l.ids);
}

struct buf text_round_trip(const struct tokenizer *t, const char *text, size_t len)
{
    struct token_list l = {0};
    struct buf b = {0};
    struct err e;
    unit_ok(tokenizer_encode(t, text, len, true, &l, &e), &e);
    for (size_t i = 0; i < l.count; i++) {
        size_t n = 0;
        const char *bytes = tokenizer_token_bytes(t, l.ids[i], true, &n);
        assert_non_null(bytes);
        buf_append(&b, bytes, n);
    }
    free(l.ids);
    return b;
}

/* ---- templates ------------------------------------------------------------------------------- */

static char *member_text(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    return v == NULL || json_is_null(v) ? NULL : json_dumps(v, JSON_ENCODE_ANY);
}

enum err_code text_render(const char *source, const char *extra_json, struct buf *ret,
                          struct err *e)
{
    struct chat_template *t = NULL;
    enum err_code rc = template_parse(source, strlen(source), &t, e);
    if (rc != ERR_OK)
        return rc;
    json_t *extra = json_loads(extra_json, JSON_ALLOW_NUL, NULL);
    assert_non_null(extra);
    char *messages = member_text(extra, "messages"), *tools = member_text(extra, "tools");
    struct template_input in = {.messages_json = messages != NULL ? messages : "[]",
                                .tools_json = tools,
                                .extra_json = extra_json,
                                .add_generation_prompt = true,
                                .bos_token = "<s>",
                                .eos_token = "</s>",
                                .now = 1721984703};
    rc = template_render(t, &in, ret, e);
    free(messages);
    free(tools);
    json_decref(extra);
    template_close(&t);
    assert_null(t);
    return rc;
}

static const char context[] =
    "{\"i\": 7, \"neg\": -3, \"half\": 0.5, \"t\": true, \"n\": null, \"s\": \"Hello, World\", "
    "\"uni\": \"h\\u00e9llo \\u65e5\\ud83d\\ude00\", \"l\": [3, 1, 2], \"ls\": [\"b\", \"a\"], "
    "\"el\": [], \"d\": {\"b\": 1, \"a\": [1, {\"k\": \"v\"}], \"z\": null}, "
    "\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", "
    "\"content\": \"U\"}, {\"role\": \"assistant\", \"content\": \"A\"}]}";

void text_gives(const char *source, const char *expected)
{
    struct buf b = {0};
    struct err e;
    char shown[240], wanted[240], from[240];
    enum err_code rc = text_render(source, context, &b, &e);
    if (rc != ERR_OK)
        fail_msg("%s: %s", text_show(source, strlen(source), from), e.msg);
    if (b.len != strlen(expected) || (b.len > 0 && memcmp(b.data, expected, b.len) != 0))
        fail_msg("%s gives \"%s\", not \"%s\"", text_show(source, strlen(source), from),
                 text_show(b.data, b.len, shown), text_show(expected, strlen(expected), wanted));
    buf_done(&b);
}

void text_fails(const char *source, enum err_code code, const char *says)
{
    struct buf b = {0};
    struct err e = {0};
    char from[240];
    enum err_code rc = text_render(source, context, &b, &e);
    text_show(source, strlen(source), from);
    if (rc != code)
        fail_msg("%s: %s (%s), not %s", from, err_code_name(rc), rc == ERR_OK ? "" : e.msg,
                 err_code_name(code));
    if (strstr(e.msg, says) == NULL)
        fail_msg("%s says \"%s\", which does not name \"%s\"", from, e.msg, says);
    assert_int_equal(b.len, 0); /* a failed render leaves nothing behind */
    buf_done(&b);
}
