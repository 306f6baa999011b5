/* Text to hashed n-grams. One pass folds bytes into code points and cuts them into tokens (words
 * and single signs); a second pass walks the tokens and hashes. Both are bounded by the geometry's
 * head and tail bytes, so a 100 kB prompt costs what a 4 kB prompt costs.
 *
 * Folding is compatibility decomposition with case folding (utf8proc), which makes full-width
 * letters, ligatures and capitals equal; ASCII never reaches the library. Digits become one sign:
 * "2 cups" and "7 cups" are the same request. A token near either end of a text weighs more than
 * one in the middle: instructions stand at the ends, the material they talk about stands between.
 */
#include "router/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define CHAR_GRAM_MIN 2
#define CHAR_GRAM_MAX 5
#define FOLD_MAX 20 /* code points that one may decompose into: 18 in Unicode today */
/* Tokens at full weight at each end; beyond them the weight falls with the third power of the
 * distance. So steep because a request has about ten words, and what it is about may have
 * thousands: with the first power a page of text between "Translate:" and its end drowned the
 * request every time. */
#define EDGE_TOKENS 10
/* Of the value of a character n-gram. There are many more of them than of words, and they say much
 * the same; measured on held-out wordings, 0.5 to 0.7 beats 1. */
#define CHARS_WEIGHT 0.7f

enum token_kind {
    TOKEN_WORD,
    TOKEN_SIGN,
};

struct token {
    uint64_t hash;
    uint32_t cp_idx, cp_count;
    float weight;
    uint8_t kind;
    bool gap_before; /* the cut between head and tail: no bigram across it */
};

struct slot {
    uint32_t key; /* feature index + 1, 0 = free */
    float tf;
};

/* Owned by one thread. */
struct text_scratch {
    struct text_geometry geometry;
    uint32_t *cps; /* [cps_cap] folded code points of all tokens */
    size_t cps_count, cps_cap;
    struct token *tokens; /* [cps_cap] */
    size_t tokens_count, words_count;
    struct slot *slots; /* open addressing; only the first slots_mask + 1 are in use */
    size_t slots_mask, slots_cap;
    uint32_t *order; /* [features_cap] slots in order of first occurrence */
    size_t order_count;
    struct text_feature *features; /* [features_cap] */
    float scale;                   /* 1 / norm of the last vector */
};

struct text_geometry text_geometry_default(void)
{
    return (struct text_geometry){
        .word_bits = 18, .char_bits = 19, .head_bytes = 1024, .tail_bytes = 1024};
}

bool text_geometry_valid(const struct text_geometry *g)
{
    bool bits = g->word_bits >= TEXT_BITS_MIN && g->word_bits <= TEXT_BITS_MAX &&
                g->char_bits >= TEXT_BITS_MIN && g->char_bits <= TEXT_BITS_MAX;
    return bits && g->head_bytes >= 64 && g->head_bytes <= 64 * BASE_KIB &&
           g->tail_bytes <= 64 * BASE_KIB;
}

size_t text_space(const struct text_geometry *g)
{
    return ((size_t)1 << g->word_bits) + ((size_t)1 << g->char_bits);
}

/* N-grams that `tokens` tokens over `cps` code points can have: one word, one bigram and the pads
 * per token, up to four character n-grams per code point. */
static size_t ngram_bound(size_t cps, size_t tokens)
{
    size_t sizes = CHAR_GRAM_MAX - CHAR_GRAM_MIN + 1;
    return 3 + tokens * 2 + (cps + 2 * tokens) * sizes;
}

struct text_scratch *text_scratch_open(const struct text_geometry *g)
{
    struct text_scratch *s = mem_alloc(sizeof(*s));
    s->geometry = *g;
    /* One code point needs a byte at least; decomposition beyond that is cut off, not grown. */
    s->cps_cap = (size_t)g->head_bytes + g->tail_bytes + FOLD_MAX;
    size_t bound = ngram_bound(s->cps_cap, s->cps_cap);
    s->slots_cap = 64;
    while (s->slots_cap < 2 * bound)
        s->slots_cap *= 2;
    s->cps = mem_array(s->cps_cap, sizeof(*s->cps));
    s->tokens = mem_array(s->cps_cap, sizeof(*s->tokens));
    s->slots = mem_array(s->slots_cap, sizeof(*s->slots));
    s->order = mem_array(bound, sizeof(*s->order));
    s->features = mem_array(bound, sizeof(*s->features));
    return s;
}

void text_scratch_close(struct text_scratch **s)
{
    if (!*s)
        return;
    free((*s)->cps);
    free((*s)->tokens);
    free((*s)->slots);
    free((*s)->order);
    free((*s)->features);
    free(*s);
    *s = NULL;
}

size_t text_word_count(const struct text_scratch *s)
{
    return s->words_count;
}

/* ---- folding and tokens ---------------------------------------------------------------------- */

enum cp_class {
    CP_SPACE,
    CP_WORD,
    CP_SIGN,
};

/* ASCII by table: lower-cased letter, '0' for any digit, 0 for what separates. */
static enum cp_class classify_ascii(uint8_t c, uint32_t *ret_cp)
{
    if (c >= 'A' && c <= 'Z') {
        *ret_cp = (uint32_t)c | 0x20;
        return CP_WORD;
    }
    if ((c >= 'a' && c <= 'z') || c == '_') {
        *ret_cp = c;
        return CP_WORD;
    }
    if (c >= '0' && c <= '9') {
        *ret_cp = '0';
        return CP_WORD;
    }
    *ret_cp = c;
    return c <= ' ' || c == 0x7f ? CP_SPACE : CP_SIGN;
}

static enum cp_class classify_unicode(uint32_t *cp)
{
    switch (utf8proc_category((utf8proc_int32_t)*cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
        return CP_WORD;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        *cp = '0';
        return CP_WORD;
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
        return CP_SPACE;
    default:
        return CP_SIGN;
    }
}

/* Typographic signs that mean an ASCII one; compatibility decomposition leaves them alone. */
static uint32_t plain_sign(uint32_t cp)
{
    switch (cp) {
    case 0x2018:
    case 0x2019:
    case 0x201B:
    case 0x2032:
    case 0x02BC:
        return '\'';
    case 0x201C:
    case 0x201D:
    case 0x201E:
    case 0x00AB:
    case 0x00BB:
        return '"';
    case 0x2010:
    case 0x2011:
    case 0x2012:
    case 0x2013:
    case 0x2014:
    case 0x2212:
        return '-';
    default:
        return cp;
    }
}

/* Fold one code point that is not ASCII; returns how many `out` got. */
static size_t fold_unicode(uint32_t cp, uint32_t out[FOLD_MAX])
{
    cp = plain_sign(cp);
    if (cp < 0x80) {
        out[0] = cp;
        return 1;
    }
    utf8proc_int32_t decomposed[FOLD_MAX];
    int last_class = UTF8PROC_BOUNDCLASS_START;
    utf8proc_ssize_t n = utf8proc_decompose_char(
        (utf8proc_int32_t)cp, decomposed, FOLD_MAX,
        UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT | UTF8PROC_CASEFOLD | UTF8PROC_IGNORE, &last_class);
    if (n < 0 || n > FOLD_MAX) {
        out[0] = cp;
        return 1;
    }
    for (utf8proc_ssize_t i = 0; i < n; i++)
        out[i] = (uint32_t)decomposed[i];
    return (size_t)n;
}

static inline uint64_t hash_step(uint64_t h, uint32_t cp)
{
    return (h ^ cp) * 0x9E3779B97F4A7C15u + 0x632BE59BD9B4E019u;
}

/* Multiplication moves entropy upward only; the index is taken from the top after this. */
static inline uint64_t hash_finish(uint64_t h)
{
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
    return h * 0xD6E8FEB86659FD93u;
}

struct cutter {
    struct text_scratch *s;
    bool in_word, gap;
};

static void cut_add(struct cutter *c, uint32_t cp, enum cp_class class)
{
    struct text_scratch *s = c->s;
    if (class == CP_SPACE) {
        c->in_word = false;
        return;
    }
    if (s->cps_count == s->cps_cap)
        return;
    if (class == CP_SIGN || !c->in_word) {
        s->tokens[s->tokens_count++] = (struct token){
            .cp_idx = (uint32_t)s->cps_count,
            .kind = class == CP_WORD ? TOKEN_WORD : TOKEN_SIGN,
            .hash = 0x2545F4914F6CDD1Du,
            .gap_before = c->gap,
        };
        c->gap = false;
        s->words_count += class == CP_WORD;
    }
    struct token *t = &s->tokens[s->tokens_count - 1];
    t->hash = hash_step(t->hash, cp);
    t->cp_count++;
    s->cps[s->cps_count++] = cp;
    c->in_word = class == CP_WORD;
}

/* "don't" is one word, 'quoted' is not: an apostrophe joins only between two letters. */
static bool apostrophe_joins(const struct cutter *c, uint32_t cp, const char *next, const char *end)
{
    if (cp != '\'' || !c->in_word || next == end)
        return false;
    uint32_t folded;
    return (uint8_t)*next < 0x80 ? classify_ascii((uint8_t)*next, &folded) == CP_WORD : true;
}

static void cut_span(struct cutter *c, const char *p, const char *end)
{
    while (p < end) {
        uint32_t cp;
        if ((uint8_t)*p < 0x80) {
            enum cp_class class = classify_ascii((uint8_t)*p++, &cp);
            cut_add(c, cp, apostrophe_joins(c, cp, p, end) ? CP_WORD : class);
            continue;
        }
        unsigned used = utf8_decode(p, (size_t)(end - p), &cp);
        if (used == 0) {
            c->in_word = false;
            p++;
            continue;
        }
        p += used;
        uint32_t folded[FOLD_MAX];
        size_t n = fold_unicode(cp, folded);
        for (size_t i = 0; i < n; i++) {
            enum cp_class class = folded[i] < 0x80 ? classify_ascii((uint8_t)folded[i], &folded[i])
                                                   : classify_unicode(&folded[i]);
            bool joins = i + 1 == n && apostrophe_joins(c, folded[i], p, end);
            cut_add(c, folded[i], joins ? CP_WORD : class);
        }
    }
    c->in_word = false;
}

/* A cut in the middle of a character would be a border anyway; this only keeps it from being a
 * sign. */
static const char *skip_continuation(const char *p, const char *end)
{
    while (p < end && ((uint8_t)*p & 0xC0) == 0x80)
        p++;
    return p;
}

static void weigh_tokens(struct text_scratch *s)
{
    for (size_t i = 0; i < s->tokens_count; i++) {
        size_t distance = BASE_MIN(i, s->tokens_count - 1 - i) + 1;
        float near = distance <= EDGE_TOKENS ? 1.0f : (float)EDGE_TOKENS / (float)distance;
        s->tokens[i].weight = near * near * near;
    }
}

static void cut_text(struct text_scratch *s, const char *text, size_t len)
{
    s->cps_count = s->tokens_count = s->words_count = 0;
    struct cutter c = {.s = s};
    size_t head = s->geometry.head_bytes, tail = s->geometry.tail_bytes;
    if (len <= head + tail) {
        cut_span(&c, text, text + len);
    } else {
        cut_span(&c, text, text + head);
        c.gap = true;
        cut_span(&c, skip_continuation(text + len - tail, text + len), text + len);
    }
    weigh_tokens(s);
}

/* ---- n-grams -----------------------------------------------------------------------------------
 */

enum ngram_kind {
    NGRAM_WORD,
    NGRAM_BIGRAM, /* token a, then token b; either may be the border of the text */
    NGRAM_CHARS,
};

/* One occurrence, enough to print it. */
struct ngram {
    enum ngram_kind kind;
    uint32_t idx;
    float weight;
    const struct token *a, *b;
    uint32_t first, count; /* of NGRAM_CHARS: position in " word " */
};

typedef void ngram_sink(void *ctx, const struct ngram *n);

static inline uint32_t padded_cp(const struct text_scratch *s, const struct token *t, uint32_t i)
{
    return i == 0 || i > t->cp_count ? (uint32_t)' ' : s->cps[t->cp_idx + i - 1];
}

static inline __attribute__((always_inline)) void
each_chars(const struct text_scratch *s, const struct token *t, ngram_sink *sink, void *ctx)
{
    uint32_t padded = t->cp_count + 2, shift = 64 - s->geometry.char_bits;
    uint32_t base = (uint32_t)1 << s->geometry.word_bits;
    struct ngram n = {.kind = NGRAM_CHARS, .weight = t->weight, .a = t};
    for (uint32_t first = 0; first + CHAR_GRAM_MIN <= padded; first++) {
        uint64_t h = hash_step(0xA0761D6478BD642Fu, padded_cp(s, t, first));
        uint32_t most = BASE_MIN((uint32_t)CHAR_GRAM_MAX, padded - first);
        for (uint32_t count = 2; count <= most; count++) {
            h = hash_step(h, padded_cp(s, t, first + count - 1));
            n.first = first;
            n.count = count;
            n.idx = base + (uint32_t)(hash_finish(h) >> shift);
            sink(ctx, &n);
        }
    }
}

static inline __attribute__((always_inline)) void each_bigram(const struct text_scratch *s,
                                                              const struct token *a,
                                                              const struct token *b,
                                                              ngram_sink *sink, void *ctx)
{
    uint64_t h = (a ? a->hash : 1) * 0xE7037ED1A0B428DBu + (b ? b->hash : 2);
    struct ngram n = {.kind = NGRAM_BIGRAM, .a = a, .b = b};
    n.weight = a && b ? BASE_MIN(a->weight, b->weight) : 1.0f;
    n.idx = (uint32_t)(hash_finish(h) >> (64 - s->geometry.word_bits));
    sink(ctx, &n);
}

/* Bigrams join neighbouring words over signs in between: "french: the" is "french the". */
static inline __attribute__((always_inline)) void each_ngram(const struct text_scratch *s,
                                                             ngram_sink *sink, void *ctx)
{
    const struct token *last = NULL;
    uint32_t shift = 64 - s->geometry.word_bits;
    for (size_t i = 0; i < s->tokens_count; i++) {
        const struct token *t = &s->tokens[i];
        struct ngram n = {.kind = NGRAM_WORD, .a = t, .weight = t->weight};
        n.idx = (uint32_t)(hash_finish(t->hash) >> shift);
        sink(ctx, &n);
        if (t->kind == TOKEN_SIGN)
            continue;
        if (!t->gap_before)
            each_bigram(s, last, t, sink, ctx);
        each_chars(s, t, sink, ctx);
        last = t;
    }
    if (last)
        each_bigram(s, last, NULL, sink, ctx);
}

static inline size_t slot_first(const struct text_scratch *s, uint32_t idx)
{
    return (idx * 0x9E3779B1u) & s->slots_mask;
}

static inline void count_ngram(void *ctx, const struct ngram *n)
{
    struct text_scratch *s = ctx;
    size_t i = slot_first(s, n->idx);
    while (s->slots[i].key != n->idx + 1) {
        if (s->slots[i].key == 0) {
            s->slots[i].key = n->idx + 1;
            s->order[s->order_count++] = (uint32_t)i;
            break;
        }
        i = (i + 1) & s->slots_mask;
    }
    s->slots[i].tf += n->weight;
}

/* The table is cut to what this text can need, so that short prompts stay in the first-level cache.
 */
static void slots_reset(struct text_scratch *s)
{
    size_t want = 2 * ngram_bound(s->cps_count, s->tokens_count), cap = 64;
    while (cap < want)
        cap *= 2;
    s->slots_mask = BASE_MIN(cap, s->slots_cap) - 1;
    memset(s->slots, 0, (s->slots_mask + 1) * sizeof(*s->slots));
    s->order_count = 0;
}

static float slot_value(const struct text_scratch *s, const struct slot *slot)
{
    bool chars = slot->key > (uint32_t)1 << s->geometry.word_bits;
    return logf(1.0f + slot->tf) * (chars ? CHARS_WEIGHT : 1.0f);
}

const struct text_feature *text_vector(struct text_scratch *s, const char *text, size_t len,
                                       size_t *ret_count)
{
    cut_text(s, text, len);
    slots_reset(s);
    each_ngram(s, count_ngram, s);
    float norm = 0.0f;
    for (size_t i = 0; i < s->order_count; i++) {
        const struct slot *slot = &s->slots[s->order[i]];
        float value = slot_value(s, slot);
        s->features[i] = (struct text_feature){.idx = slot->key - 1, .value = value};
        norm += value * value;
    }
    s->scale = norm > 0.0f ? 1.0f / sqrtf(norm) : 0.0f;
    for (size_t i = 0; i < s->order_count; i++)
        s->features[i].value *= s->scale;
    *ret_count = s->order_count;
    return s->features;
}

float text_value(const struct text_scratch *s, uint32_t idx)
{
    size_t i = slot_first(s, idx);
    while (s->slots[i].key != 0) {
        if (s->slots[i].key == idx + 1)
            return slot_value(s, &s->slots[i]) * s->scale;
        i = (i + 1) & s->slots_mask;
    }
    return 0.0f;
}

/* ---- explanation
 * --------------------------------------------------------------------------------- */

struct printer {
    const struct text_scratch *s;
    text_ngram_fn *fn;
    void *ctx;
};

static size_t put_cp(char *out, size_t at, size_t cap, uint32_t cp)
{
    char utf8[4];
    unsigned n = utf8_encode(cp, utf8);
    if (at + n > cap)
        return at;
    memcpy(out + at, utf8, n);
    return at + n;
}

static size_t put_token(const struct text_scratch *s, char *out, size_t at, size_t cap,
                        const struct token *t)
{
    for (uint32_t i = 0; t && i < t->cp_count; i++)
        at = put_cp(out, at, cap, s->cps[t->cp_idx + i]);
    return at;
}

static void print_ngram(void *ctx, const struct ngram *n)
{
    const struct printer *p = ctx;
    char out[96];
    size_t at = 0;
    if (n->kind == NGRAM_CHARS) {
        for (uint32_t i = 0; i < n->count; i++)
            at = put_cp(out, at, sizeof(out), padded_cp(p->s, n->a, n->first + i));
    } else if (n->kind == NGRAM_WORD) {
        at = put_token(p->s, out, 0, sizeof(out), n->a);
    } else {
        /* The text's borders print as regular expressions write them. */
        at = n->a ? put_token(p->s, out, 0, sizeof(out), n->a) : put_cp(out, 0, sizeof(out), '^');
        at = put_cp(out, at, sizeof(out), ' ');
        at = n->b ? put_token(p->s, out, at, sizeof(out), n->b) : put_cp(out, at, sizeof(out), '$');
    }
    p->fn(p->ctx, n->idx, out, at);
}

void text_each_ngram(struct text_scratch *s, const char *text, size_t len, text_ngram_fn *fn,
                     void *ctx)
{
    cut_text(s, text, len);
    struct printer p = {.s = s, .fn = fn, .ctx = ctx};
    each_ngram(s, print_ngram, &p);
}
