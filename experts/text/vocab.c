/* The vocabulary as flat arrays, and the string map the models look their pieces up in. */
#include "experts/text/tokenizer_priv.h"

#include <stdlib.h>
#include <string.h>

/* ---- string map ------------------------------------------------------------------------------ */

/* 16 bytes: a vocabulary's map is megabytes, and what it costs at start is the pages it touches. */
struct strmap_slot {
    const char *key; /* NULL = free */
    uint16_t len;
    uint16_t tag; /* of the hash: most misses never touch the key */
    int32_t value;
};

void strmap_init(struct strmap *m, size_t count_expected)
{
    size_t cap = 16;
    while (cap - cap / 4 < count_expected)
        cap *= 2;
    m->slots = mem_array(cap, sizeof(*m->slots));
    m->mask = cap - 1;
    m->count = 0;
}

void strmap_done(struct strmap *m)
{
    free(m->slots);
    *m = (struct strmap){0};
}

/* The slot that holds the key, or the free one where it belongs. */
static struct strmap_slot *slot_of(const struct strmap *m, const char *key, size_t len,
                                   uint16_t *ret_tag)
{
    uint64_t h = hash64_of(key, len, 0);
    uint16_t tag = (uint16_t)(h >> 48);
    *ret_tag = tag;
    for (size_t i = (size_t)h & m->mask;; i = (i + 1) & m->mask) {
        struct strmap_slot *s = &m->slots[i];
        if (s->key == NULL)
            return s;
        if (s->tag == tag && s->len == len && memcmp(s->key, key, len) == 0)
            return s;
    }
}

static void strmap_double(struct strmap *m)
{
    struct strmap old = *m;
    strmap_init(m, old.mask + 1);
    for (size_t i = 0; i <= old.mask; i++) {
        const struct strmap_slot *s = &old.slots[i];
        if (s->key != NULL)
            strmap_put(m, s->key, s->len, s->value);
    }
    free(old.slots);
}

void strmap_put(struct strmap *m, const char *key, size_t len, int32_t value)
{
    if (m->count >= m->mask - m->mask / 4)
        strmap_double(m);
    uint16_t tag;
    struct strmap_slot *s = slot_of(m, key, len, &tag);
    if (s->key == NULL)
        m->count++;
    *s = (struct strmap_slot){.key = key, .len = (uint16_t)len, .tag = tag, .value = value};
}

int32_t strmap_get(const struct strmap *m, const char *key, size_t len)
{
    uint16_t tag;
    const struct strmap_slot *s = slot_of(m, key, len, &tag);
    return s->key == NULL ? -1 : s->value;
}

/* ---- vocabulary ------------------------------------------------------------------------------ */

/* SentencePiece and our WordPiece files write a space as U+2581. */
static size_t unescape_space(const char *text, size_t len, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        if (len - i >= 3 && memcmp(text + i, "\xE2\x96\x81", 3) == 0) {
            out[n++] = ' ';
            i += 3;
        } else {
            out[n++] = text[i++];
        }
    }
    return n;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

/* "<0x0A>" -> 10; -1 if the text is not of that form. */
static int byte_of_text(const char *text, size_t len)
{
    if (len != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    int hi = hex_value(text[3]), lo = hex_value(text[4]);
    return hi < 0 || lo < 0 ? -1 : hi << 4 | lo;
}

/* Bytes never outnumber the text's, so `out` is as long as the text. */
static size_t decode_token(const struct token *t, enum token_kind kind, char *out)
{
    if (t->type == TOKEN_BYTE) {
        int byte = byte_of_text(t->text, t->text_len);
        if (byte >= 0) {
            out[0] = (char)byte;
            return 1;
        }
    }
    if (t->type == TOKEN_UNUSED)
        return 0;
    if (t->type != TOKEN_NORMAL && t->type != TOKEN_BYTE) {
        memcpy(out, t->text, t->text_len);
        return t->text_len;
    }
    if (kind == TOKEN_KIND_BPE)
        return bpe_decode_text(t->text, t->text_len, out);
    return unescape_space(t->text, t->text_len, out);
}

/* token_type and scores are optional, but must cover the vocabulary where they exist. */
static enum err_code read_columns(struct vocab *v, const struct gguf *g, struct err *e)
{
    const void *data;
    size_t count;
    if (gguf_has(g, "tokenizer.ggml.token_type")) {
        enum err_code rc = gguf_array_i32(g, "tokenizer.ggml.token_type", &data, &count, e);
        if (rc != ERR_OK)
            return rc;
        if (count != (size_t)v->count)
            return err_set(e, ERR_CORRUPT,
                           "tokenizer.ggml.token_type has %zu elements for %d tokens", count,
                           v->count);
        for (size_t i = 0; i < count; i++) {
            int32_t type;
            memcpy(&type, (const char *)data + i * sizeof(type), sizeof(type));
            if (type < TOKEN_NORMAL || type > TOKEN_BYTE)
                type = TOKEN_NORMAL;
            v->tokens[i].type = (uint8_t)type;
        }
    }
    if (gguf_has(g, "tokenizer.ggml.scores")) {
        enum err_code rc = gguf_array_f32(g, "tokenizer.ggml.scores", &data, &count, e);
        if (rc != ERR_OK)
            return rc;
        if (count != (size_t)v->count)
            return err_set(e, ERR_CORRUPT, "tokenizer.ggml.scores has %zu elements for %d tokens",
                           count, v->count);
        for (size_t i = 0; i < count; i++)
            memcpy(&v->tokens[i].score, (const char *)data + i * sizeof(float), sizeof(float));
    }
    return ERR_OK;
}

static enum err_code fill(struct vocab *v, const struct gguf *g, const struct gguf_str *texts,
                          size_t count, enum token_kind kind, struct err *e)
{
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        if (texts[i].len > UINT16_MAX)
            return err_set(e, ERR_CORRUPT, "token %zu of tokenizer.ggml.tokens has %zu bytes", i,
                           texts[i].len);
        total += texts[i].len;
    }
    v->count = (int32_t)count;
    v->tokens = mem_array(count, sizeof(*v->tokens));
    v->pool = mem_array(total + 1, 2);
    char *text = v->pool, *bytes = v->pool + total + 1;
    for (size_t i = 0; i < count; i++) {
        struct token *t = &v->tokens[i];
        memcpy(text, texts[i].data, texts[i].len);
        *t = (struct token){.text = text, .text_len = (uint32_t)texts[i].len, .type = TOKEN_NORMAL};
        text += texts[i].len;
    }
    enum err_code rc = read_columns(v, g, e);
    if (rc != ERR_OK)
        return rc;
    strmap_init(&v->by_text, count);
    for (size_t i = 0; i < count; i++) {
        struct token *t = &v->tokens[i];
        t->bytes = bytes;
        t->bytes_len = (uint32_t)decode_token(t, kind, bytes);
        bytes += t->bytes_len;
        strmap_put(&v->by_text, t->text, t->text_len, (int32_t)i);
    }
    return ERR_OK;
}

enum err_code vocab_init(struct vocab *v, const struct gguf *g, enum token_kind kind, struct err *e)
{
    *v = (struct vocab){0};
    if (!gguf_has(g, "tokenizer.ggml.tokens"))
        return err_set(e, ERR_CORRUPT, "the file has no tokenizer.ggml.tokens: no vocabulary");
    struct gguf_str *texts = NULL;
    size_t count = 0;
    enum err_code rc = gguf_array_strs(g, "tokenizer.ggml.tokens", &texts, &count, e);
    if (rc != ERR_OK)
        return rc;
    if (count == 0 || count > INT32_MAX / 2)
        rc = err_set(e, ERR_CORRUPT, "tokenizer.ggml.tokens has %zu elements", count);
    else
        rc = fill(v, g, texts, count, kind, e);
    free(texts);
    return rc;
}

void vocab_done(struct vocab *v)
{
    strmap_done(&v->by_text);
    free(v->tokens);
    free(v->pool);
    *v = (struct vocab){0};
}
