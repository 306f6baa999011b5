/* SentencePiece BPE (Llama 2, Mistral, Phi-3, Gemma): characters are joined as long as two
 * neighbours form a piece of the vocabulary, the best score first, the leftmost among equals. What
 * stays without a piece is written as byte tokens, or as the unknown token.
 *
 * Only normal and user-defined pieces take part: a control token can not be spelled into being. An
 * unused piece may be a step on the way, but is taken apart again if it survives.
 *
 * Where no piece of the vocabulary crosses from a word into the space of the next one (Llama's),
 * words are merged one by one: the same pieces, and a queue of a few candidates instead of
 * thousands (measured: 2,600 tokens in a third of the time). */
#include "experts/text/text_utf8.h"
#include "experts/text/tokenizer_priv.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct spm {
    const struct vocab *vocab;
    struct strmap pieces;
    int32_t byte_token[256]; /* -1 = none */
    int32_t unknown;         /* -1 = none */
    bool has_unused;
    bool words_apart; /* no piece goes on behind a space: words can be joined one by one */
};

static bool is_space_at(const char *text, size_t len, size_t pos)
{
    return len - pos >= 3 && memcmp(text + pos, "\xE2\x96\x81", 3) == 0;
}

/* Does a space stand anywhere behind another character? */
static bool has_inner_space(const char *text, size_t len)
{
    size_t pos = 0;
    while (pos < len && is_space_at(text, len, pos))
        pos += 3;
    return memmem(text + pos, len - pos, "\xE2\x96\x81", 3) != NULL;
}

enum err_code spm_open(const struct vocab *v, int32_t unknown_id, struct spm **ret, struct err *e)
{
    struct spm *s = mem_alloc(sizeof(*s));
    s->vocab = v;
    s->unknown = unknown_id;
    s->words_apart = true;
    for (size_t i = 0; i < 256; i++)
        s->byte_token[i] = -1;
    strmap_init(&s->pieces, (size_t)v->count);
    for (int32_t id = 0; id < v->count; id++) {
        const struct token *t = &v->tokens[id];
        if (t->type == TOKEN_BYTE && t->bytes_len == 1)
            s->byte_token[(unsigned char)t->bytes[0]] = id;
        if (t->type != TOKEN_NORMAL && t->type != TOKEN_USER && t->type != TOKEN_UNUSED)
            continue;
        if (t->text_len == 0 || isnan(t->score))
            continue;
        strmap_put(&s->pieces, t->text, t->text_len, id);
        s->has_unused |= t->type == TOKEN_UNUSED;
        s->words_apart &= !has_inner_space(t->text, t->text_len);
    }
    *ret = s;
    return ERR_OK;
}

void spm_close(struct spm **s)
{
    if (*s == NULL)
        return;
    strmap_done(&(*s)->pieces);
    free(*s);
    *s = NULL;
}

/* ---- merging --------------------------------------------------------------------------------- */

#define LINK_END UINT32_MAX
struct link {
    uint32_t pos, len;   /* of the text; len 0 = merged away */
    uint32_t prev, next; /* LINK_END at the ends */
};
struct candidate {
    float score;
    uint32_t left, len; /* stale when the two neighbours no longer span len */
};
struct merge {
    const struct spm *s;
    const char *text;
    struct link *links; /* of the stretch being merged */
    size_t links_cap;
    struct candidate *heap;
    size_t heap_count, heap_cap;
    uint32_t *left_len; /* [vocab] how an unused piece was made; NULL where there are none */
    struct token_list *ret;
};

static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static void heap_push(struct merge *m, struct candidate c)
{
    if (m->heap_count == m->heap_cap) {
        m->heap_cap = m->heap_cap == 0 ? 256 : m->heap_cap * 2;
        m->heap = mem_grow(m->heap, m->heap_cap, sizeof(*m->heap));
    }
    size_t i = m->heap_count++;
    while (i > 0 && before(&c, &m->heap[(i - 1) / 2])) {
        m->heap[i] = m->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    m->heap[i] = c;
}

static struct candidate heap_pop(struct merge *m)
{
    struct candidate top = m->heap[0], last = m->heap[--m->heap_count];
    size_t i = 0;
    for (;;) {
        size_t kid = 2 * i + 1;
        if (kid >= m->heap_count)
            break;
        if (kid + 1 < m->heap_count && before(&m->heap[kid + 1], &m->heap[kid]))
            kid++;
        if (!before(&m->heap[kid], &last))
            break;
        m->heap[i] = m->heap[kid];
        i = kid;
    }
    m->heap[i] = last;
    return top;
}

static void push_pair(struct merge *m, uint32_t left)
{
    if (left == LINK_END || m->links[left].next == LINK_END)
        return;
    const struct link *l = &m->links[left];
    uint32_t len = l->len + m->links[l->next].len;
    int32_t id = strmap_get(&m->s->pieces, m->text + l->pos, len);
    if (id >= 0)
        heap_push(m, (struct candidate){m->s->vocab->tokens[id].score, left, len});
}

static void note_origin(struct merge *m, const struct link *l, uint32_t len)
{
    int32_t id = strmap_get(&m->s->pieces, m->text + l->pos, len);
    if (id >= 0 && m->s->vocab->tokens[id].type == TOKEN_UNUSED)
        m->left_len[id] = l->len;
}

static void merge_all(struct merge *m)
{
    while (m->heap_count > 0) {
        struct candidate c = heap_pop(m);
        struct link *l = &m->links[c.left];
        if (l->len == 0 || l->next == LINK_END || l->len + m->links[l->next].len != c.len)
            continue;
        if (m->left_len != NULL)
            note_origin(m, l, c.len);
        struct link *right = &m->links[l->next];
        l->len = c.len;
        l->next = right->next;
        right->len = 0;
        if (l->next != LINK_END)
            m->links[l->next].prev = c.left;
        push_pair(m, l->prev);
        push_pair(m, c.left);
    }
}

static void emit_unknown(struct merge *m, const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        int32_t id = m->s->byte_token[(unsigned char)text[i]];
        if (id >= 0) {
            token_list_push(m->ret, id);
        } else if (m->s->unknown >= 0) {
            token_list_push(m->ret, m->s->unknown); /* once for the whole character */
            return;
        }
    }
}

/* An unused piece longer than this stays whole: bounds the recursion, and no real one comes near.
 */
enum { UNUSED_BYTES_MAX = 512 };

static void emit_span(struct merge *m, uint32_t pos, uint32_t len)
{
    int32_t id = strmap_get(&m->s->pieces, m->text + pos, len);
    if (id < 0) {
        emit_unknown(m, m->text + pos, len);
        return;
    }
    uint32_t left = m->left_len != NULL && len <= UNUSED_BYTES_MAX ? m->left_len[id] : 0;
    if (left == 0) {
        token_list_push(m->ret, id);
        return;
    }
    emit_span(m, pos, left);
    emit_span(m, pos + left, len - left);
}

/* Spaces become U+2581, as the vocabulary spells them. */
static void escape_spaces(const char *text, size_t len, bool prefix, struct buf *out)
{
    if (prefix)
        buf_append(out, "\xE2\x96\x81", 3);
    size_t from = 0;
    for (size_t i = 0; i < len; i++) {
        if (text[i] == ' ') {
            buf_append(out, text + from, i - from);
            buf_append(out, "\xE2\x96\x81", 3);
            from = i + 1;
        }
    }
    buf_append(out, text + from, len - from);
}

/* End of the stretch that begins at `pos` and can be merged by itself. */
static size_t stretch_end(const struct spm *s, const struct buf *text, size_t pos)
{
    if (!s->words_apart)
        return text->len;
    while (pos < text->len && is_space_at(text->data, text->len, pos))
        pos += 3;
    const char *space = memmem(text->data + pos, text->len - pos, "\xE2\x96\x81", 3);
    return space == NULL ? text->len : (size_t)(space - text->data);
}

/* Merge text[from, to) and emit its pieces. */
static void encode_stretch(struct merge *m, size_t from, size_t to)
{
    uint32_t count = 0;
    for (size_t pos = from; pos < to;) {
        size_t step = text_utf8_step(m->text[pos]);
        if (count == m->links_cap) {
            m->links_cap = m->links_cap == 0 ? 64 : m->links_cap * 2;
            m->links = mem_grow(m->links, m->links_cap, sizeof(*m->links));
        }
        m->links[count] = (struct link){.pos = (uint32_t)pos,
                                        .len = (uint32_t)step,
                                        .prev = count == 0 ? LINK_END : count - 1,
                                        .next = count + 1};
        count++;
        pos += step;
    }
    if (count == 0)
        return;
    m->links[count - 1].next = LINK_END;
    for (uint32_t i = 0; i + 1 < count; i++)
        push_pair(m, i);
    merge_all(m);
    for (uint32_t at = 0; at != LINK_END; at = m->links[at].next)
        emit_span(m, m->links[at].pos, m->links[at].len);
}

void spm_encode(const struct spm *s, const char *text, size_t len, bool prefix,
                struct token_list *ret)
{
    struct buf escaped = {0};
    escape_spaces(text, len, prefix, &escaped);
    struct merge m = {.s = s, .text = escaped.data, .ret = ret};
    if (s->has_unused)
        m.left_len = mem_array((size_t)s->vocab->count, sizeof(*m.left_len));
    for (size_t pos = 0; pos < escaped.len;) {
        size_t end = stretch_end(s, &escaped, pos);
        encode_stretch(&m, pos, end);
        pos = end;
    }
    free(m.links);
    free(m.heap);
    free(m.left_len);
    buf_done(&escaped);
}
