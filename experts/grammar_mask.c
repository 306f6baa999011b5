/* Which tokens may come next: a walk of all tokens, as a trie laid out in the order of the walk, through
 * the grammar's states. A byte that does not fit skips everything below it, so the walk costs what is
 * allowed plus its border. Masks are kept by state: inside a string of any length the state is the same. */
#include <stdlib.h>
#include <string.h>

#include "experts/grammar.h"

#define TOKEN_BYTES_MAX 255U /* longer tokens are never allowed */
#define MASKS_KEPT 32U

struct trie_node {
    uint32_t skip;           /* the next node that is not below this one */
    uint32_t first, count;   /* tokens that end here, in `order` */
    uint8_t byte, depth;     /* depth 1 = first byte */
};

struct grammar_vocab {
    const struct tokenizer *tokenizer;
    struct trie_node *node;
    uint32_t nodes;
    int32_t *order;          /* tokens sorted by their bytes */
    int32_t *ends;           /* end-of-generation tokens */
    uint32_t ends_count;
    int32_t vocab;
};

/* ---- the trie ------------------------------------------------------------------------------ */

struct spelled {
    const char *bytes;
    size_t len;
    int32_t token;
};

static int by_bytes(const void *a, const void *b)
{
    const struct spelled *x = a, *y = b;
    int c = memcmp(x->bytes, y->bytes, BASE_MIN(x->len, y->len));
    if (c != 0 || x->len == y->len)
        return c != 0 ? c : x->token < y->token ? -1 : 1;
    return x->len < y->len ? -1 : 1;
}

const char *grammar_vocab_bytes(const struct grammar_vocab *v, int32_t token, size_t *ret_len)
{
    if (token < 0 || token >= v->vocab || tokenizer_is_control(v->tokenizer, token))
        return NULL;
    return tokenizer_token_bytes(v->tokenizer, token, false, ret_len);
}

bool grammar_vocab_is_end(const struct grammar_vocab *v, int32_t token)
{
    return token >= 0 && token < v->vocab && tokenizer_is_eog(v->tokenizer, token);
}

static uint32_t spell_all(struct grammar_vocab *v, struct spelled *list)
{
    uint32_t n = 0;
    for (int32_t i = 0; i < v->vocab; i++) {
        size_t len = 0;
        if (grammar_vocab_is_end(v, i)) {
            v->ends[v->ends_count++] = i;
            continue;
        }
        const char *bytes = grammar_vocab_bytes(v, i, &len);
        if (bytes != NULL && len > 0 && len <= TOKEN_BYTES_MAX)
            list[n++] = (struct spelled){bytes, len, i};
    }
    qsort(list, n, sizeof *list, by_bytes);
    return n;
}

static size_t common(const struct spelled *a, const struct spelled *b)
{
    size_t n = 0;
    while (n < a->len && n < b->len && a->bytes[n] == b->bytes[n])
        n++;
    return n;
}

/* Sorted strings one after the other: what is shared with the one before is there already. */
static void grow_trie(struct grammar_vocab *v, const struct spelled *list, uint32_t n)
{
    uint32_t open[TOKEN_BYTES_MAX + 1] = {0};
    size_t depth = 0;
    for (uint32_t i = 0; i < n; i++) {
        size_t shared = i > 0 ? common(&list[i - 1], &list[i]) : 0;
        for (; depth > shared; depth--)
            v->node[open[depth]].skip = v->nodes;
        for (; depth < list[i].len; depth++) {
            open[depth + 1] = v->nodes;
            v->node[v->nodes++] = (struct trie_node){.byte = (uint8_t)list[i].bytes[depth],
                                                     .depth = (uint8_t)(depth + 1), .first = i};
        }
        v->node[open[depth]].count++;
        v->order[i] = list[i].token;
    }
    for (; depth > 0; depth--)
        v->node[open[depth]].skip = v->nodes;
}

struct grammar_vocab *grammar_vocab_open(const struct tokenizer *t)
{
    struct grammar_vocab *v = mem_alloc(sizeof *v);
    size_t bytes = 0;
    v->tokenizer = t;
    v->vocab = tokenizer_vocab(t);
    v->order = mem_array((size_t)v->vocab + 1, sizeof *v->order);
    v->ends = mem_array((size_t)v->vocab + 1, sizeof *v->ends);
    struct spelled *list = mem_array((size_t)v->vocab + 1, sizeof *list);
    uint32_t n = spell_all(v, list);
    for (uint32_t i = 0; i < n; i++)
        bytes += list[i].len - (i > 0 ? common(&list[i - 1], &list[i]) : 0);
    v->node = mem_array(bytes + 1, sizeof *v->node);
    grow_trie(v, list, n);
    free(list);
    return v;
}

void grammar_vocab_close(struct grammar_vocab **vp)
{
    struct grammar_vocab *v = *vp;
    *vp = NULL;
    if (v == NULL)
        return;
    free(v->node);
    free(v->order);
    free(v->ends);
    free(v);
}

/* ---- masks ------------------------------------------------------------------------------------ */

struct kept_mask {
    uint32_t state, count;   /* state + 1, 0 = empty */
    uint32_t bytes_least, bytes_most; /* of the shortest rests after its tokens */
    uint32_t *bits;
};

struct grammar_mask_cache {
    struct kept_mask mask[MASKS_KEPT];
    uint32_t *memory;
    uint32_t words, turn;
    struct kept_mask within;  /* the last one that was narrowed; not found again */
};

struct grammar_mask_cache *grammar_mask_cache_open(const struct grammar_vocab *v)
{
    struct grammar_mask_cache *c = mem_alloc(sizeof *c);
    c->words = ((uint32_t)v->vocab + 31) / 32;
    c->memory = mem_array((size_t)c->words * (MASKS_KEPT + 1), sizeof *c->memory);
    c->within.bits = c->memory + (size_t)c->words * MASKS_KEPT;
    for (uint32_t i = 0; i < MASKS_KEPT; i++)
        c->mask[i].bits = c->memory + (size_t)i * c->words;
    return c;
}

void grammar_mask_cache_close(struct grammar_mask_cache **cp)
{
    if (*cp != NULL)
        free((*cp)->memory);
    free(*cp);
    *cp = NULL;
}

void grammar_mask_cache_clear(struct grammar_mask_cache *c)
{
    for (uint32_t i = 0; i < MASKS_KEPT; i++)
        c->mask[i].state = 0;
}

static uint32_t set_bit(uint32_t *bits, int32_t token)
{
    bits[token / 32] |= 1U << (token % 32);
    return 1;
}

/* Tokens after which the shortest rest has at most `bytes_left` bytes. */
static void walk(const struct grammar_vocab *v, struct grammar_state *s, uint32_t bytes_left,
                 struct kept_mask *m, bool *full)
{
    uint32_t path[TOKEN_BYTES_MAX + 1], i = 0;
    m->count = m->bytes_most = 0;
    m->bytes_least = GRAMMAR_BYTES_MAX;
    path[0] = grammar_state_now(s);
    while (i < v->nodes) {
        const struct trie_node *n = &v->node[i];
        uint32_t to = grammar_next(s, path[n->depth - 1], n->byte, full);
        if (to == GRAMMAR_DEAD) {
            i = n->skip;
            continue;
        }
        path[n->depth] = to;
        i++;
        if (n->count == 0)
            continue;
        uint32_t bytes = grammar_state_bytes(s, to);
        if (bytes > bytes_left)
            continue;
        m->bytes_least = BASE_MIN(m->bytes_least, bytes);
        m->bytes_most = BASE_MAX(m->bytes_most, bytes);
        for (uint32_t k = 0; k < n->count; k++)
            m->count += set_bit(m->bits, v->order[n->first + k]);
    }
}

static void fill(struct grammar_mask_cache *c, const struct grammar_vocab *v, struct grammar_state *s,
                 uint32_t bytes_left, struct kept_mask *m)
{
    grammar_begin_work(s);
    for (int attempt = 0; attempt < 2; attempt++) {
        bool full = false;
        memset(m->bits, 0, c->words * sizeof *m->bits);
        walk(v, s, bytes_left, m, &full);
        if (!full)
            break;
        grammar_flush(s); /* the second time there is room, or what is left out is never allowed */
    }
    for (uint32_t i = 0; grammar_state_accepts(s, grammar_state_now(s)) && i < v->ends_count; i++)
        m->count += set_bit(m->bits, v->ends[i]);
    m->state = grammar_state_now(s) + 1;
}

static struct kept_mask *find_mask(struct grammar_mask_cache *c, uint32_t state)
{
    for (uint32_t i = 0; i < MASKS_KEPT; i++)
        if (c->mask[i].state == state + 1)
            return &c->mask[i];
    return NULL;
}

const uint32_t *grammar_mask_fill(struct grammar_mask_cache *c, const struct grammar_vocab *v,
                                  struct grammar_state *s, uint32_t bytes_left, uint32_t *ret_count)
{
    struct kept_mask *m = find_mask(c, grammar_state_now(s));
    if (m == NULL) {
        m = &c->mask[c->turn++ % MASKS_KEPT];
        fill(c, v, s, UINT32_MAX, m);
    }
    /* Where none is short enough the shortest may still do: tokens are mostly more than a byte. */
    bytes_left = BASE_MAX(bytes_left, m->bytes_least);
    if (m->bytes_most > bytes_left) {
        fill(c, v, s, bytes_left, &c->within);
        m = &c->within;
    }
    *ret_count = m->count;
    return m->bits;
}
