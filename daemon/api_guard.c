/* Marks inside control-token texts; the idea is in the header. */
#include "daemon/api_guard.h"

#include <stdlib.h>
#include <string.h>

struct guard_text {
    const char *text; /* the tokenizer's */
    size_t len;
};

struct guard {
    struct guard_text *texts; /* grouped by first byte */
    size_t count;
    size_t longest;   /* bytes of the longest token of any kind */
    size_t from[257]; /* texts of first byte b: [from[b], from[b + 1]) */
};

static int by_first_byte(const void *pa, const void *pb)
{
    const struct guard_text *a = pa, *b = pb;
    return (unsigned char)a->text[0] - (unsigned char)b->text[0];
}

struct guard *guard_open(const struct tokenizer *t)
{
    struct guard *g = mem_alloc(sizeof *g);
    for (int32_t id = 0; id < tokenizer_vocab(t); id++) {
        size_t len = 0;
        const char *text = tokenizer_token_bytes(t, id, true, &len);
        g->longest = BASE_MAX(g->longest, len);
        if (text == NULL || len < 2 || !tokenizer_is_control(t, id))
            continue;
        if ((g->count & (g->count - 1)) == 0)
            g->texts = mem_grow(g->texts, BASE_MAX(g->count * 2, 1), sizeof *g->texts);
        g->texts[g->count++] = (struct guard_text){.text = text, .len = len};
    }
    if (g->count > 0)
        qsort(g->texts, g->count, sizeof *g->texts, by_first_byte);
    size_t at = 0;
    for (size_t byte = 0; byte < 256; byte++) {
        g->from[byte] = at;
        while (at < g->count && (unsigned char)g->texts[at].text[0] == byte)
            at++;
    }
    g->from[256] = at;
    return g;
}

void guard_close(struct guard **g)
{
    if (*g != NULL)
        free((*g)->texts);
    free(*g);
    *g = NULL;
}

size_t guard_longest_token(const struct guard *g)
{
    return BASE_MAX(g->longest, (size_t)1);
}

/* A control token's text starts at s. */
static bool starts_control(const struct guard *g, const char *s, size_t len)
{
    unsigned char first = (unsigned char)s[0];
    for (size_t i = g->from[first]; i < g->from[first + 1]; i++)
        if (g->texts[i].len <= len && memcmp(g->texts[i].text, s, g->texts[i].len) == 0)
            return true;
    return false;
}

static bool text_touches(const struct guard *g, const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (starts_control(g, s + i, len - i))
            return true;
    return false;
}

bool guard_touches(const struct guard *g, const json_t *v)
{
    const char *key;
    json_t *item;
    size_t idx;
    if (json_is_string(v))
        return text_touches(g, json_string_value(v), json_string_length(v));
    if (json_is_array(v)) {
        json_array_foreach(v, idx, item)
        {
            if (guard_touches(g, item))
                return true;
        }
    } else if (json_is_object(v)) {
        json_object_foreach((json_t *)v, key, item)
        {
            if (text_touches(g, key, strlen(key)) || guard_touches(g, item))
                return true;
        }
    }
    return false;
}

void guard_pick_mark(const json_t *v, char mark[GUARD_MARK_BYTES + 1])
{
    char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);
    mark[GUARD_MARK_BYTES] = 0;
    /* 32 noncharacters; text that has all of them is split at the last, which loses it nothing but
     * a character that Unicode says is never exchanged. */
    for (uint32_t cp = 0xfdd0; cp <= 0xfdef; cp++) {
        utf8_encode(cp, mark);
        if (text == NULL || strstr(text, mark) == NULL)
            break;
    }
    free(text);
}

/* The mark goes after the first whole character, so that both pieces stay UTF-8. */
static void put_marked(const struct guard *g, const char *s, size_t len, const char *mark,
                       struct buf *out)
{
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        unsigned n = utf8_decode(s + i, len - i, &cp);
        n = n > 0 ? n : 1;
        buf_append(out, s + i, n);
        if (starts_control(g, s + i, len - i))
            buf_append(out, mark, GUARD_MARK_BYTES);
        i += n;
    }
}

static json_t *mark_text(const struct guard *g, const json_t *v, const char *mark)
{
    struct buf out = {0};
    put_marked(g, json_string_value(v), json_string_length(v), mark, &out);
    json_t *text = json_stringn(out.data, out.len);
    buf_done(&out);
    return text;
}

static json_t *mark_object(const struct guard *g, const json_t *v, const char *mark)
{
    json_t *copy = json_object(), *item;
    const char *key;
    json_object_foreach((json_t *)v, key, item)
    {
        struct buf name = {0};
        buf_puts(&name, "");
        put_marked(g, key, strlen(key), mark, &name);
        json_object_set_new(copy, name.data, guard_mark(g, item, mark));
        buf_done(&name);
    }
    return copy;
}

json_t *guard_mark(const struct guard *g, const json_t *v, const char *mark)
{
    if (!guard_touches(g, v))
        return json_incref((json_t *)v);
    if (json_is_string(v))
        return mark_text(g, v, mark);
    if (json_is_object(v))
        return mark_object(g, v, mark);
    json_t *copy = json_array(), *item;
    size_t idx;
    json_array_foreach(v, idx, item) json_array_append_new(copy, guard_mark(g, item, mark));
    return copy;
}

enum err_code guard_encode(const struct tokenizer *t, const char *text, size_t len,
                           const char *mark, struct token_list *ret, struct err *e)
{
    while (mark != NULL) {
        const char *cut = memmem(text, len, mark, GUARD_MARK_BYTES);
        if (cut == NULL)
            break;
        enum err_code code = tokenizer_encode(t, text, (size_t)(cut - text), true, ret, e);
        if (code != ERR_OK)
            return code;
        len -= (size_t)(cut - text) + GUARD_MARK_BYTES;
        text = cut + GUARD_MARK_BYTES;
    }
    return tokenizer_encode(t, text, len, true, ret, e);
}
