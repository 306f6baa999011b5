/* Byte-level BPE (GPT-2 and its many children): text is cut by the family's regexes, each piece
 * starts as bytes, and the pair with the lowest merge rank is joined until none is left.
 *
 * Symbols are numbers: the vocabulary's ids, and above them strings that merges make but the
 * vocabulary lacks, and bytes it has no token for. So a merge is one probe of a table of pairs and
 * never a string comparison. Such an extra symbol that survives is written as its bytes, and a
 * byte without a token vanishes, as the models' own tokenizers do it.
 *
 * Short pieces (nearly all) scan an array of ranks; from SHORT_MAX on a heap keeps the cost at
 * O(n log n), so a run of 100,000 letters is not a way to stop the server. */
#include "experts/text/text_utf8.h"
#include "experts/text/tokenizer_priv.h"

#include <stdlib.h>
#include <string.h>

enum { SHORT_MAX = 40 };
#define RANK_NONE UINT32_MAX

struct pair {
    int32_t left, right; /* left < 0 = free */
    uint32_t rank;
};

/* A symbol that is not in the vocabulary. */
struct extra {
    const char *text;
    uint32_t len;
};

struct bpe {
    const struct vocab *vocab;
    struct pretokenizer *pre;
    struct pair *pairs; /* open addressing */
    size_t pairs_mask;
    int32_t *merged; /* [rank] the symbol a merge makes */
    int32_t byte_symbol[256];
    int32_t byte_token[256]; /* -1 = the vocabulary has no token for the byte */
    struct strmap by_bytes;  /* whole pieces, only where merges are ignored for them */
    struct extra *extras;    /* symbol id - vocab->count */
    size_t extras_count, extras_cap;
    struct strmap extras_by_text;
    char *pool; /* texts of the extras */
};

/* ---- GPT-2's printable bytes ----------------------------------------------------------------- */

/* Printable Latin-1 stands for itself; the other 68 bytes are U+0100 and up, in order. */
static bool byte_is_itself(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

static uint32_t char_of_byte(unsigned byte)
{
    if (byte_is_itself(byte))
        return byte;
    uint32_t n = 0;
    for (unsigned i = 0; i < byte; i++)
        n += !byte_is_itself(i);
    return 0x100 + n;
}

/* -1 = the character stands for no byte. */
static int byte_of_char(uint32_t cp)
{
    if (cp < 0x100)
        return byte_is_itself(cp) ? (int)cp : -1;
    if (cp < 0x121)
        return (int)(cp - 0x100); /* 00..20 */
    if (cp < 0x143)
        return (int)(cp - 0x121 + 0x7F); /* 7F..A0 */
    return cp == 0x143 ? 0xAD : -1;
}

size_t bpe_decode_text(const char *text, size_t len, char *out)
{
    size_t n = 0;
    for (size_t pos = 0; pos < len;) {
        if (byte_is_itself((unsigned char)text[pos]) && (unsigned char)text[pos] < 0x80) {
            out[n++] = text[pos++]; /* nearly all of most vocabularies */
            continue;
        }
        uint32_t cp;
        bool valid;
        size_t step = text_utf8_next(text + pos, len - pos, &cp, &valid);
        int byte = valid ? byte_of_char(cp) : -1;
        if (byte >= 0) {
            out[n++] = (char)byte;
        } else { /* a token added as plain text: it stands for itself */
            memcpy(out + n, text + pos, step);
            n += step;
        }
        pos += step;
    }
    return n;
}

/* ---- open ------------------------------------------------------------------------------------ */

static int32_t symbol_of(struct bpe *b, const char *text, size_t len)
{
    int32_t id = strmap_get(&b->vocab->by_text, text, len);
    return id >= 0 ? id : strmap_get(&b->extras_by_text, text, len);
}

/* The symbol of a text, made if it is new; the text must stay. */
static int32_t symbol_make(struct bpe *b, const char *text, size_t len)
{
    int32_t id = symbol_of(b, text, len);
    if (id >= 0)
        return id;
    if (b->extras_count == b->extras_cap) {
        b->extras_cap = b->extras_cap == 0 ? 64 : b->extras_cap * 2;
        b->extras = mem_grow(b->extras, b->extras_cap, sizeof(*b->extras));
    }
    b->extras[b->extras_count] = (struct extra){.text = text, .len = (uint32_t)len};
    id = b->vocab->count + (int32_t)b->extras_count++;
    strmap_put(&b->extras_by_text, text, len, id);
    return id;
}

static size_t pair_hash(int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    return (size_t)(h ^ h >> 29);
}

/* First one wins: a merge listed twice has the rank of its first line. */
static void pair_put(struct bpe *b, struct pair p)
{
    size_t i = pair_hash(p.left, p.right) & b->pairs_mask;
    while (b->pairs[i].left >= 0) {
        if (b->pairs[i].left == p.left && b->pairs[i].right == p.right)
            return;
        i = (i + 1) & b->pairs_mask;
    }
    b->pairs[i] = p;
}

static inline uint32_t rank_of(const struct bpe *b, int32_t left, int32_t right)
{
    size_t i = pair_hash(left, right) & b->pairs_mask;
    for (;;) {
        const struct pair *p = &b->pairs[i];
        if (p->left == left && p->right == right)
            return p->rank;
        if (p->left < 0)
            return RANK_NONE;
        i = (i + 1) & b->pairs_mask;
    }
}

static void open_bytes(struct bpe *b)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char *text = b->pool + 4 * byte;
        unsigned len = utf8_encode(char_of_byte(byte), text);
        b->byte_token[byte] = strmap_get(&b->vocab->by_text, text, len);
        b->byte_symbol[byte] = symbol_make(b, text, len);
    }
}

/* "left right" -> a pair. The joined text goes to `joined`, which must stay. */
static enum err_code add_merge(struct bpe *b, struct gguf_str line, size_t rank, char *joined,
                               struct err *e)
{
    /* The space that divides is never the first byte: a token may begin with one. */
    const char *space = NULL;
    if (line.len >= 3 && line.len <= UINT16_MAX)
        space = memchr(line.data + 1, ' ', line.len - 2);
    if (space == NULL)
        return err_set(e, ERR_CORRUPT, "tokenizer.ggml.merges: element %zu is not \"left right\"",
                       rank);
    size_t left = (size_t)(space - line.data), right = line.len - left - 1;
    memcpy(joined, line.data, left);
    memcpy(joined + left, space + 1, right);
    struct pair p = {.rank = (uint32_t)rank,
                     .left = symbol_make(b, joined, left),
                     .right = symbol_make(b, joined + left, right)};
    b->merged[rank] = symbol_make(b, joined, left + right);
    pair_put(b, p);
    return ERR_OK;
}

static enum err_code open_merges(struct bpe *b, const struct gguf_str *lines, size_t count,
                                 struct err *e)
{
    if (count >= INT32_MAX / 4)
        return err_set(e, ERR_CORRUPT, "tokenizer.ggml.merges has %zu elements", count);
    size_t bytes = 1024, cap = 1024;
    for (size_t i = 0; i < count; i++) {
        if (!size_add(bytes, lines[i].len, &bytes))
            return err_set(e, ERR_CORRUPT, "tokenizer.ggml.merges is too long");
    }
    while (cap < count + count / 2)
        cap *= 2;
    b->pairs = mem_array(cap, sizeof(*b->pairs));
    b->pairs_mask = cap - 1;
    b->merged = mem_array(BASE_MAX(count, (size_t)1), sizeof(*b->merged));
    for (size_t i = 0; i < cap; i++)
        b->pairs[i].left = -1;
    b->pool = mem_alloc(bytes);
    open_bytes(b);
    size_t used = 1024;
    for (size_t i = 0; i < count; i++) {
        enum err_code rc = add_merge(b, lines[i], i, b->pool + used, e);
        if (rc != ERR_OK)
            return rc;
        used += lines[i].len;
    }
    return ERR_OK;
}

static void open_whole_pieces(struct bpe *b)
{
    strmap_init(&b->by_bytes, (size_t)b->vocab->count);
    for (int32_t id = 0; id < b->vocab->count; id++) {
        const struct token *t = &b->vocab->tokens[id];
        if (t->type == TOKEN_NORMAL && t->bytes_len > 0)
            strmap_put(&b->by_bytes, t->bytes, t->bytes_len, id);
    }
}

enum err_code bpe_open(const struct gguf *g, const struct vocab *v, struct bpe **ret, struct err *e)
{
    struct gguf_str pre = {.data = "", .len = 0}, *lines = NULL;
    size_t count = 0;
    if (gguf_has(g, "tokenizer.ggml.pre")) {
        enum err_code rc = gguf_get_str(g, "tokenizer.ggml.pre", &pre, e);
        if (rc != ERR_OK)
            return rc;
    }
    if (!gguf_has(g, "tokenizer.ggml.merges"))
        return err_set(e, ERR_CORRUPT,
                       "the file has no tokenizer.ggml.merges, which a gpt2 vocabulary needs");
    struct bpe *b = mem_alloc(sizeof(*b));
    b->vocab = v;
    strmap_init(&b->extras_by_text, 512);
    enum err_code rc = pretokenizer_open(pre.data, pre.len, &b->pre, e);
    if (rc == ERR_OK)
        rc = gguf_array_strs(g, "tokenizer.ggml.merges", &lines, &count, e);
    if (rc == ERR_OK)
        rc = open_merges(b, lines, count, e);
    free(lines);
    if (rc != ERR_OK) {
        bpe_close(&b);
        return rc;
    }
    if (pretokenizer_ignore_merges(b->pre))
        open_whole_pieces(b);
    *ret = b;
    return ERR_OK;
}

void bpe_close(struct bpe **b)
{
    if (*b == NULL)
        return;
    pretokenizer_close(&(*b)->pre);
    strmap_done(&(*b)->by_bytes);
    strmap_done(&(*b)->extras_by_text);
    free((*b)->pairs);
    free((*b)->merged);
    free((*b)->extras);
    free((*b)->pool);
    free(*b);
    *b = NULL;
}

bool bpe_add_bos(const struct bpe *b)
{
    return pretokenizer_add_bos(b->pre);
}

/* ---- encode ---------------------------------------------------------------------------------- */

static void emit(const struct bpe *b, int32_t symbol, struct token_list *ret)
{
    if (symbol < b->vocab->count) {
        token_list_push(ret, symbol);
        return;
    }
    const struct extra *x = &b->extras[symbol - b->vocab->count];
    for (size_t pos = 0; pos < x->len;) {
        uint32_t cp;
        bool valid;
        pos += text_utf8_next(x->text + pos, x->len - pos, &cp, &valid);
        int byte = valid ? byte_of_char(cp) : -1;
        if (byte >= 0 && b->byte_token[byte] >= 0)
            token_list_push(ret, b->byte_token[byte]);
    }
}

/* At most SHORT_MAX bytes: each round scans the ranks of all neighbours. */
static void merge_short(const struct bpe *b, const char *text, size_t len, struct token_list *ret)
{
    int32_t sym[SHORT_MAX];
    uint32_t rank[SHORT_MAX]; /* of (sym[i], sym[i + 1]) */
    size_t n = len;
    for (size_t i = 0; i < n; i++)
        sym[i] = b->byte_symbol[(unsigned char)text[i]];
    for (size_t i = 0; i + 1 < n; i++)
        rank[i] = rank_of(b, sym[i], sym[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            if (rank[i] < rank[best])
                best = i;
        }
        if (rank[best] == RANK_NONE)
            break;
        sym[best] = b->merged[rank[best]];
        n--;
        memmove(&sym[best + 1], &sym[best + 2], (n - best - 1) * sizeof(*sym));
        if (best + 1 < n) {
            memmove(&rank[best + 1], &rank[best + 2], (n - best - 2) * sizeof(*rank));
            rank[best] = rank_of(b, sym[best], sym[best + 1]);
        }
        if (best > 0)
            rank[best - 1] = rank_of(b, sym[best - 1], sym[best]);
    }
    for (size_t i = 0; i < n; i++)
        emit(b, sym[i], ret);
}

/* A candidate merge; stale ones are recognised by the symbols they were made from. */
struct candidate {
    uint64_t key; /* rank, then place: the order of merging */
    int32_t left, right;
};
struct heap {
    struct candidate *items;
    size_t count, cap;
};

static void heap_push(struct heap *h, struct candidate c)
{
    if (h->count == h->cap) {
        h->cap = h->cap == 0 ? 256 : h->cap * 2;
        h->items = mem_grow(h->items, h->cap, sizeof(*h->items));
    }
    size_t i = h->count++;
    while (i > 0 && h->items[(i - 1) / 2].key > c.key) {
        h->items[i] = h->items[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h->items[i] = c;
}

static struct candidate heap_pop(struct heap *h)
{
    struct candidate top = h->items[0], last = h->items[--h->count];
    size_t i = 0;
    for (;;) {
        size_t kid = 2 * i + 1;
        if (kid >= h->count)
            break;
        if (kid + 1 < h->count && h->items[kid + 1].key < h->items[kid].key)
            kid++;
        if (h->items[kid].key >= last.key)
            break;
        h->items[i] = h->items[kid];
        i = kid;
    }
    h->items[i] = last;
    return top;
}

struct link {
    int32_t sym;
    uint32_t prev, next; /* LINK_END at the ends */
};
#define LINK_END UINT32_MAX

static void push_pair(const struct bpe *b, struct heap *h, const struct link *l, uint32_t at)
{
    if (at == LINK_END || l[at].next == LINK_END)
        return;
    int32_t left = l[at].sym, right = l[l[at].next].sym;
    uint32_t rank = rank_of(b, left, right);
    if (rank != RANK_NONE)
        heap_push(h, (struct candidate){(uint64_t)rank << 32 | at, left, right});
}

/* Pieces of any length below 4 GiB. */
static void merge_long(const struct bpe *b, const char *text, size_t len, struct token_list *ret)
{
    struct link *l = mem_array(len, sizeof(*l));
    struct heap h = {0};
    for (size_t i = 0; i < len; i++)
        l[i] = (struct link){.sym = b->byte_symbol[(unsigned char)text[i]],
                             .prev = i == 0 ? LINK_END : (uint32_t)i - 1,
                             .next = i + 1 == len ? LINK_END : (uint32_t)i + 1};
    for (size_t i = 0; i + 1 < len; i++)
        push_pair(b, &h, l, (uint32_t)i);
    while (h.count > 0) {
        struct candidate c = heap_pop(&h);
        uint32_t at = (uint32_t)c.key, next = l[at].next;
        if (l[at].sym != c.left || next == LINK_END || l[next].sym != c.right)
            continue;
        l[at].sym = b->merged[c.key >> 32];
        l[at].next = l[next].next;
        if (l[at].next != LINK_END)
            l[l[at].next].prev = at;
        l[next].sym = -1; /* gone: what still names it in the heap is stale */
        push_pair(b, &h, l, l[at].prev);
        push_pair(b, &h, l, at);
    }
    for (uint32_t at = 0; at != LINK_END; at = l[at].next)
        emit(b, l[at].sym, ret);
    free(h.items);
    free(l);
}

struct encode_ctx {
    const struct bpe *b;
    struct token_list *ret;
};

static void encode_piece(void *ctx, const char *piece, size_t len)
{
    const struct encode_ctx *c = ctx;
    if (c->b->by_bytes.slots != NULL) {
        int32_t id = strmap_get(&c->b->by_bytes, piece, len);
        if (id >= 0) {
            token_list_push(c->ret, id);
            return;
        }
    }
    if (len <= SHORT_MAX)
        merge_short(c->b, piece, len, c->ret);
    else
        merge_long(c->b, piece, len, c->ret);
}

enum err_code bpe_encode(const struct bpe *b, const char *text, size_t len, struct token_list *ret,
                         struct err *e)
{
    struct encode_ctx ctx = {.b = b, .ret = ret};
    return pretokenizer_split(b->pre, text, len, encode_piece, &ctx, e);
}
