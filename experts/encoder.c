/* A sentence encoder: texts in, vectors of length 1 out. It owns a small node of its own with one
 * worker, the caller, so that embedding a prompt never waits for a step of the decoders and never
 * wakes a thread. Layers run one at a time over the same pages: K and V of a layer are of no use to
 * the next, and a batch then works in a few hundred kilobytes instead of megabytes. */
#include "experts/encoder.h"

#include <stdlib.h>
#include <string.h>

#define STEP_TOKENS 512 /* of one run over the layers: enough to read each weight once per batch   \
                         */
#define STEP_TEXTS 64

struct encoder {
    struct encoder_shape shape;
    char *name;
    uint32_t tokens_max;
    uint64_t id;
    size_t bytes;
    struct tokenizer *tokenizer;
    int32_t first, last; /* [CLS], [SEP] */
    struct rdu_program *program;
    struct rdu_node *node;
    struct arena weights;
    struct rdu_weight *globals; /* [global slots] */
    struct rdu_weight *layers;  /* [layers, layer slots] */

    /* Of one step; the caller's lock guards them. */
    int32_t *tokens;
    uint32_t *pos, *seq, *ends, *outs; /* [STEP_TOKENS + tokens_max] */
    void **page_of;                    /* [pages], all of one block of memory */
    void *const **seq_pages;           /* [STEP_TEXTS] */
    void *pages;
    size_t pages_count;
    float *x;
    struct token_list ids;
};

/* ---- weights --------------------------------------------------------------------------------- */

/* Matrices that int8 leaves can take become Q8_0; vectors and odd widths stay f32. */
static enum rdu_type type_of(const struct rdu_slot_info *s, enum rdu_numerics numerics)
{
    bool vector = s->rows == 1;
    return !vector && numerics == RDU_NUMERICS_INT8 && s->cols % 32 == 0 ? RDU_Q8_0 : RDU_F32;
}

static enum err_code pack(struct encoder *n, const struct rdu_slot_info *s, const float *values,
                          enum rdu_type type, struct rdu_weight *ret, struct err *e)
{
    enum err_code code = ERR_OK;
    *ret = (struct rdu_weight){.rows = s->rows, .cols = s->cols, .type = type};
    if (s->rows == 1) { /* vectors are plain f32 */
        void *copy = arena_alloc(&n->weights, s->cols * sizeof(float));
        memcpy(copy, values, s->cols * sizeof(float));
        ret->data = copy;
        n->bytes += s->cols * sizeof(float);
        return ERR_OK;
    }
    size_t bytes = rdu_pack_bytes(type, s->rows, s->cols);
    void *packed = arena_alloc(&n->weights, bytes);
    n->bytes += bytes;
    ret->data = packed;
    if (type == RDU_F32) {
        rdu_pack_rows(type, s->rows, s->cols, values, packed);
        return ERR_OK;
    }
    size_t row_bytes = s->cols / 32 * rdu_type_info(type)->block_bytes;
    char *rows = mem_array(s->rows, row_bytes);
    for (uint32_t r = 0; r < s->rows && code == ERR_OK; r++)
        code =
            rdu_quantize_row(type, values + (size_t)r * s->cols, rows + r * row_bytes, s->cols, e);
    if (code == ERR_OK)
        rdu_pack_rows(type, s->rows, s->cols, rows, packed);
    free(rows);
    return code;
}

static enum err_code load_slots(struct encoder *n, const struct encoder_source *src,
                                enum rdu_section scope, int layer, enum rdu_numerics numerics,
                                struct rdu_weight *ret, struct err *e)
{
    enum err_code code = ERR_OK;
    for (uint32_t i = 0; i < rdu_program_slots(n->program, scope) && code == ERR_OK; i++) {
        const struct rdu_slot_info *s = rdu_program_slot(n->program, scope, i);
        size_t elems = (size_t)s->rows * s->cols;
        float *values = mem_array(elems, sizeof(*values));
        code = encoder_source_read(src, s->name, layer, s->rows, s->cols, values, e);
        for (size_t k = 0; k < elems && code == ERR_OK; k++)
            if (!(values[k] > -1e30f && values[k] < 1e30f))
                code = err_set(e, ERR_CORRUPT, "'%.200s': a weight of %s is not a number",
                               src->path, s->name);
        if (code == ERR_OK) {
            n->id = hash64_of(values, elems * sizeof(*values), n->id);
            code = pack(n, s, values, type_of(s, numerics), &ret[i], e);
        }
        free(values);
    }
    return code;
}

static enum err_code load(struct encoder *n, const struct encoder_source *src,
                          enum rdu_numerics numerics, struct err *e)
{
    uint32_t slots = rdu_program_slots(n->program, RDU_SECTION_LAYER);
    n->globals =
        mem_array(rdu_program_slots(n->program, RDU_SECTION_EMBED) + 1, sizeof(*n->globals));
    n->layers = mem_array((size_t)n->shape.layers * slots, sizeof(*n->layers));
    enum err_code code = load_slots(n, src, RDU_SECTION_EMBED, -1, numerics, n->globals, e);
    for (uint32_t l = 0; l < n->shape.layers && code == ERR_OK; l++)
        code = load_slots(n, src, RDU_SECTION_LAYER, (int)l, numerics,
                          n->layers + (size_t)l * slots, e);
    return code;
}

/* ---- open --------------------------------------------------------------------------------------
 */

static enum err_code open_program(struct encoder *n, const struct encoder_options *opt,
                                  struct err *e)
{
    struct rdu_graph *g = NULL;
    const struct rdu_program_options program = {.exec = opt->exec, .sockets = 1};
    enum err_code code = arch_build_bert(&n->shape, opt->numerics, &g, e);
    return code == ERR_OK ? rdu_program_open(&g, &program, &n->program, e) : code;
}

static enum err_code open_node(struct encoder *n, const struct encoder_options *opt, struct err *e)
{
    uint32_t tokens = STEP_TOKENS + n->tokens_max;
    const struct rdu_node_options node = {
        .sockets = 1, .threads = 1, .cpu = opt->cpu, .max_tokens = tokens};
    enum err_code code = rdu_node_open(&node, &n->node, e);
    return code == ERR_OK ? rdu_node_prepare(n->node, n->program, tokens, STEP_TEXTS, e) : code;
}

static enum err_code open_step(struct encoder *n, struct err *e)
{
    size_t tokens = (size_t)STEP_TOKENS + n->tokens_max;
    uint32_t kv_heads, head_dim;
    rdu_program_kv(n->program, &kv_heads, &head_dim);
    size_t page = rdu_kv_page_bytes(RDU_KV_F32, 1, kv_heads, head_dim, RDU_KV_BLOCK);
    size_t width = ((size_t)n->shape.width + 15) & ~(size_t)15;
    n->pages_count = tokens / RDU_KV_BLOCK + STEP_TEXTS;
    n->tokens = mem_array(tokens, sizeof(*n->tokens));
    n->pos = mem_array(tokens, sizeof(*n->pos));
    n->seq = mem_array(tokens, sizeof(*n->seq));
    n->ends = mem_array(tokens, sizeof(*n->ends));
    n->outs = mem_array(STEP_TEXTS, sizeof(*n->outs));
    n->page_of = mem_array(n->pages_count, sizeof(*n->page_of));
    n->seq_pages = mem_array(STEP_TEXTS, sizeof(*n->seq_pages));
    n->pages = aligned_alloc(64, (n->pages_count * page + 63) & ~(size_t)63);
    n->x = aligned_alloc(64, tokens * width * sizeof(float));
    if (n->pages == NULL || n->x == NULL)
        return err_set(e, ERR_NO_MEMORY, "cannot allocate the encoder's working memory");
    memset(n->pages, 0, n->pages_count * page);
    for (size_t i = 0; i < n->pages_count; i++)
        n->page_of[i] = (char *)n->pages + i * page;
    return ERR_OK;
}

static enum err_code open_tokenizer(struct encoder *n, const struct encoder_source *src,
                                    struct err *e)
{
    enum err_code code = tokenizer_open(src->vocab, &n->tokenizer, e);
    if (code != ERR_OK)
        return code;
    n->first = tokenizer_find(n->tokenizer, "[CLS]", 5);
    n->last = tokenizer_find(n->tokenizer, "[SEP]", 5);
    if (n->first < 0 || n->last < 0 || tokenizer_vocab(n->tokenizer) > (int32_t)n->shape.vocab)
        return err_set(e, ERR_CORRUPT,
                       "'%.200s': the vocabulary of %d pieces needs [CLS], [SEP] and a row of the "
                       "embedding for each piece",
                       src->path, tokenizer_vocab(n->tokenizer));
    return ERR_OK;
}

static char *name_of(const char *path)
{
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/')
        len--;
    size_t from = len;
    while (from > 0 && path[from - 1] != '/')
        from--;
    if (len - from > 5 && memcmp(path + len - 5, ".gguf", 5) == 0)
        len -= 5;
    return mem_strndup(path + from, len - from);
}

enum err_code encoder_open(const struct encoder_options *opt, struct encoder **ret, struct err *e)
{
    struct encoder_source src;
    enum err_code code = encoder_source_open(opt->path, &src, e);
    if (code != ERR_OK)
        return code;
    struct encoder *n = mem_alloc(sizeof(*n));
    arena_init(&n->weights, 4 * BASE_MIB);
    n->shape = src.shape;
    n->tokens_max = src.tokens_max;
    n->name = name_of(opt->path);
    code = open_tokenizer(n, &src, e);
    if (code == ERR_OK)
        code = open_program(n, opt, e);
    if (code == ERR_OK)
        code = load(n, &src, opt->numerics, e);
    if (code == ERR_OK)
        code = open_node(n, opt, e);
    if (code == ERR_OK)
        code = open_step(n, e);
    encoder_source_close(&src);
    if (code != ERR_OK) {
        encoder_close(&n);
        return code;
    }
    *ret = n;
    return ERR_OK;
}

void encoder_close(struct encoder **p)
{
    struct encoder *n = *p;
    if (n == NULL)
        return;
    rdu_node_close(&n->node);
    rdu_program_close(&n->program);
    tokenizer_close(&n->tokenizer);
    arena_done(&n->weights);
    free(n->globals);
    free(n->layers);
    free(n->tokens);
    free(n->pos);
    free(n->seq);
    free(n->ends);
    free(n->outs);
    free((void *)n->page_of);
    free((void *)n->seq_pages);
    free(n->pages);
    free(n->x);
    free(n->ids.ids);
    free(n->name);
    free(n);
    *p = NULL;
}

const char *encoder_name(const struct encoder *n)
{
    return n->name;
}

uint32_t encoder_width(const struct encoder *n)
{
    return n->shape.width;
}

uint32_t encoder_tokens_max(const struct encoder *n)
{
    return n->tokens_max;
}

uint64_t encoder_id(const struct encoder *n)
{
    return n->id;
}

size_t encoder_bytes(const struct encoder *n)
{
    return n->bytes;
}

const struct tokenizer *encoder_tokenizer(const struct encoder *n)
{
    return n->tokenizer;
}

/* ---- encoding -------------------------------------------------------------------------------- */

struct step {
    uint32_t tokens, texts;
    size_t pages;
};

/* One text's tokens between [CLS] and [SEP] into the step; of a text that is too long the start and
 * the end are kept. */
static void add_text(struct encoder *n, struct step *s, const int32_t *ids, uint32_t count,
                     uint32_t most)
{
    uint32_t kept = BASE_MIN(count, most - 2), head = (kept + 1) / 2, from = s->tokens;
    int32_t *out = n->tokens + from;
    *out++ = n->first;
    memcpy(out, ids, (count == kept ? kept : head) * sizeof(*out));
    if (count != kept)
        memcpy(out + head, ids + count - (kept - head), (kept - head) * sizeof(*out));
    out[kept] = n->last;
    for (uint32_t i = 0; i < kept + 2; i++) {
        n->pos[from + i] = i;
        n->seq[from + i] = s->texts;
        n->ends[from + i] = kept + 1;
    }
    n->seq_pages[s->texts] = (void *const *)(n->page_of + s->pages);
    s->pages += (kept + 2 + RDU_KV_BLOCK - 1) / RDU_KV_BLOCK;
    s->tokens += kept + 2;
    n->outs[s->texts] = n->shape.pooling == ENCODER_POOL_MEAN ? s->tokens - 1 : from;
    s->texts++;
}

static void run_step(struct encoder *n, const struct step *s, float *ret)
{
    uint32_t slots = rdu_program_slots(n->program, RDU_SECTION_LAYER);
    size_t stride = ((size_t)n->shape.width + RDU_GROUP - 1) / RDU_GROUP * RDU_GROUP;
    float *rows = stride == n->shape.width ? ret : mem_array(s->texts * stride, sizeof(*rows));
    const struct rdu_token_group group = {.token_from = 0, .token_count = s->tokens};
    struct rdu_args args = {.n_tokens = s->tokens,
                            .n_outs = s->texts,
                            .n_layers = 1,
                            .tokens = n->tokens,
                            .pos = n->pos,
                            .ends = n->ends,
                            .seq = n->seq,
                            .kv_pages = n->seq_pages,
                            .kv_page_tokens = RDU_KV_BLOCK,
                            .kv_type = RDU_KV_F32,
                            .outs = n->outs,
                            .globals = n->globals,
                            .layers = n->layers,
                            .groups = &group,
                            .groups_count = 1,
                            .x = n->x,
                            .logits = rows,
                            .logits_stride = stride};
    rdu_node_run(n->node, n->program, &args, 0, 1);
    for (uint32_t l = 0; l < n->shape.layers; l++) {
        args.layers = n->layers + (size_t)l * slots;
        rdu_node_run(n->node, n->program, &args, 1, 2);
    }
    rdu_node_run(n->node, n->program, &args, 2, 3);
    for (uint32_t i = 0; rows != ret && i < s->texts; i++)
        memcpy(ret + (size_t)i * n->shape.width, rows + i * stride, n->shape.width * sizeof(*ret));
    if (rows != ret)
        free(rows);
}

/* Bytes that are enough for `most` tokens at either end of a text: a token has rarely more than 16.
 */
static size_t bytes_enough(uint32_t most)
{
    return (size_t)most * 16;
}

/* Tokens of a text into n->ids; a very long text is read at both ends only, so that the time is
 * bounded. */
static enum err_code text_ids(struct encoder *n, const struct encoder_text *t, uint32_t most,
                              struct err *e)
{
    size_t enough = bytes_enough(most);
    n->ids.count = 0;
    if (t->len <= 2 * enough)
        return tokenizer_encode(n->tokenizer, t->text, t->len, false, &n->ids, e);
    size_t tail = t->len - enough;
    while (tail < t->len && ((uint8_t)t->text[tail] & 0xC0) == 0x80)
        tail++;
    enum err_code code = tokenizer_encode(n->tokenizer, t->text,
                                          utf8_complete_prefix(t->text, enough), false, &n->ids, e);
    if (code == ERR_OK)
        code = tokenizer_encode(n->tokenizer, t->text + tail, t->len - tail, false, &n->ids, e);
    return code;
}

enum err_code encoder_encode(struct encoder *n, const struct encoder_text *texts, size_t count,
                             uint32_t tokens_max, float *ret, uint64_t *ret_tokens, struct err *e)
{
    uint32_t most = tokens_max ? BASE_MIN(tokens_max, n->tokens_max) : n->tokens_max;
    most = BASE_MAX(most, 3u);
    struct step s = {0};
    uint64_t tokens = 0;
    size_t done = 0;
    enum err_code code = ERR_OK;
    for (size_t i = 0; i < count && code == ERR_OK; i++) {
        const int32_t *ids = texts[i].ids;
        size_t ids_count = texts[i].len;
        if (ids == NULL) {
            code = text_ids(n, &texts[i], most, e);
            ids = n->ids.ids;
            ids_count = n->ids.count;
        }
        for (size_t k = 0; k < ids_count && code == ERR_OK; k++)
            if (ids[k] < 0 || (uint32_t)ids[k] >= n->shape.vocab)
                code = err_set(e, ERR_INVALID, "token %d is not in the encoder's vocabulary of %u",
                               ids[k], n->shape.vocab);
        if (code != ERR_OK)
            break;
        add_text(n, &s, ids, (uint32_t)BASE_MIN(ids_count, (size_t)UINT32_MAX), most);
        if (s.tokens < STEP_TOKENS && s.texts < STEP_TEXTS && i + 1 < count)
            continue;
        run_step(n, &s, ret + done * n->shape.width);
        tokens += s.tokens;
        done += s.texts;
        s = (struct step){0};
    }
    if (code == ERR_OK && ret_tokens)
        *ret_tokens = tokens;
    return code;
}
