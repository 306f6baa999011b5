#include "tests/unit/experts/bert.h"

#include <math.h>
#include <sys/stat.h>

const char *const bert_pieces[] = {
    "[PAD]",  "[UNK]", "[CLS]",  "[SEP]", "[MASK]", "the", "cat", "dog", "sat",  "##s",
    "##ting", "run",   "##ning", "on",    "mat",    ".",   ",",   "?",   "what", "is",
    "a",      "b",     "##a",    "##b",   "c",      "##c", "1",   "2",   "##2"};
const size_t bert_vocab = BASE_COUNT(bert_pieces);

static void add(struct bert *b, struct rng *r, const char *hf, const char *gguf, uint32_t rows,
                uint32_t cols, float scale, float around)
{
    struct bert_tensor *t = &b->tensors[b->count++];
    size_t n = (size_t)BASE_MAX(rows, 1u) * cols;
    t->hf = arena_strndup(&b->memory, hf, strlen(hf));
    t->gguf = arena_strndup(&b->memory, gguf, strlen(gguf));
    t->rows = rows;
    t->cols = cols;
    t->data = arena_alloc(&b->memory, n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        t->data[i] = around + scale * (float)(rng_f64(r) * 2.0 - 1.0);
}

static void add_pair(struct bert *b, struct rng *r, int layer, const char *hf, const char *gguf,
                     uint32_t rows, uint32_t cols)
{
    static const char *const part[] = {"weight", "bias"};
    for (int i = 0; i < 2; i++) {
        char *h = layer < 0 ? mem_format("%s.%s", hf, part[i])
                            : mem_format("encoder.layer.%d.%s.%s", layer, hf, part[i]);
        char *g = layer < 0 ? mem_format("%s.%s", gguf, part[i])
                            : mem_format("blk.%d.%s.%s", layer, gguf, part[i]);
        bool norm = rows == 0;
        if (i == 0 && !norm)
            add(b, r, h, g, rows, cols, 0.25f, 0.0f);
        else
            add(b, r, h, g, 0, norm ? cols : rows, 0.3f, i == 0 ? 1.0f : 0.0f);
        free(h);
        free(g);
    }
}

void bert_open(struct bert *b, uint64_t seed)
{
    struct rng r;
    rng_init(&r, seed);
    *b = (struct bert){0};
    arena_init(&b->memory, 1 << 16);
    add(b, &r, "embeddings.word_embeddings.weight", "token_embd.weight", (uint32_t)bert_vocab,
        BERT_WIDTH, 1.0f, 0.0f);
    add(b, &r, "embeddings.position_embeddings.weight", "position_embd.weight", BERT_CONTEXT,
        BERT_WIDTH, 0.5f, 0.0f);
    add(b, &r, "embeddings.token_type_embeddings.weight", "token_types.weight", 2, BERT_WIDTH, 0.2f,
        0.0f);
    add_pair(b, &r, -1, "embeddings.LayerNorm", "token_embd_norm", 0, BERT_WIDTH);
    for (int l = 0; l < BERT_LAYERS; l++) {
        add_pair(b, &r, l, "attention.self.query", "attn_q", BERT_WIDTH, BERT_WIDTH);
        add_pair(b, &r, l, "attention.self.key", "attn_k", BERT_WIDTH, BERT_WIDTH);
        add_pair(b, &r, l, "attention.self.value", "attn_v", BERT_WIDTH, BERT_WIDTH);
        add_pair(b, &r, l, "attention.output.dense", "attn_output", BERT_WIDTH, BERT_WIDTH);
        add_pair(b, &r, l, "attention.output.LayerNorm", "attn_output_norm", 0, BERT_WIDTH);
        add_pair(b, &r, l, "intermediate.dense", "ffn_up", BERT_FFN, BERT_WIDTH);
        add_pair(b, &r, l, "output.dense", "ffn_down", BERT_WIDTH, BERT_FFN);
        add_pair(b, &r, l, "output.LayerNorm", "layer_output_norm", 0, BERT_WIDTH);
    }
}

void bert_close(struct bert *b)
{
    arena_done(&b->memory);
}

const struct bert_tensor *bert_find(const struct bert *b, const char *gguf)
{
    for (size_t i = 0; i < b->count; i++)
        if (strcmp(b->tensors[i].gguf, gguf) == 0)
            return &b->tensors[i];
    fail_msg("the test has no tensor %s", gguf);
    abort();
}

/* ---- files ------------------------------------------------------------------------------------
 */

static size_t elems(const struct bert_tensor *t)
{
    return (size_t)BASE_MAX(t->rows, 1u) * t->cols;
}

void bert_safetensors(const struct bert *b, struct buf *out)
{
    struct buf table = {0};
    size_t at = 0;
    buf_puts(&table, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < b->count; i++) {
        const struct bert_tensor *t = &b->tensors[i];
        size_t bytes = elems(t) * sizeof(float);
        buf_printf(&table, ",\"%s\":{\"dtype\":\"F32\",\"shape\":[", t->hf);
        if (t->rows > 0)
            buf_printf(&table, "%u,", t->rows);
        buf_printf(&table, "%u],\"data_offsets\":[%zu,%zu]}", t->cols, at, at + bytes);
        at += bytes;
    }
    buf_puts(&table, "}");
    uint64_t len = table.len;
    buf_append(out, &len, sizeof(len));
    buf_append(out, table.data, table.len);
    for (size_t i = 0; i < b->count; i++)
        buf_append(out, b->tensors[i].data, elems(&b->tensors[i]) * sizeof(float));
    buf_done(&table);
}

static void write_in(const char *dir, const char *name, const struct buf *text)
{
    char *path = unit_path(dir, name);
    unit_write(path, text->data, text->len);
    free(path);
}

void bert_write_folder(const struct bert *b, const char *dir)
{
    struct buf out = {0};
    buf_printf(&out,
               "{\"model_type\":\"bert\",\"hidden_act\":\"gelu\",\"num_hidden_layers\":%d,"
               "\"hidden_size\":%d,\"num_attention_heads\":%d,\"intermediate_size\":%d,"
               "\"vocab_size\":%zu,\"max_position_embeddings\":%d,\"layer_norm_eps\":1e-12}",
               BERT_LAYERS, BERT_WIDTH, BERT_HEADS, BERT_FFN, bert_vocab, BERT_CONTEXT);
    write_in(dir, "config.json", &out);
    buf_clear(&out);
    for (size_t i = 0; i < bert_vocab; i++)
        buf_printf(&out, "%s\n", bert_pieces[i]);
    write_in(dir, "vocab.txt", &out);
    buf_clear(&out);
    bert_safetensors(b, &out);
    write_in(dir, "model.safetensors", &out);
    buf_done(&out);
}

void bert_write_gguf(const struct bert *b, const char *path)
{
    struct made m = {0};
    char text[32][16];
    const char *pieces[32];
    made_str(&m, "general.architecture", "bert");
    made_u32(&m, "bert.block_count", BERT_LAYERS);
    made_u32(&m, "bert.embedding_length", BERT_WIDTH);
    made_u32(&m, "bert.attention.head_count", BERT_HEADS);
    made_u32(&m, "bert.feed_forward_length", BERT_FFN);
    made_u32(&m, "bert.context_length", BERT_CONTEXT);
    made_f32(&m, "bert.attention.layer_norm_epsilon", 1e-12f);
    made_u32(&m, "bert.pooling_type", 2);
    made_str(&m, "tokenizer.ggml.model", "bert");
    made_u32(&m, "tokenizer.ggml.unknown_token_id", 1);
    for (size_t i = 0; i < bert_vocab; i++) {
        const char *p = bert_pieces[i];
        bool inside = p[0] == '#', special = p[0] == '[' && p[1] != 0;
        snprintf(text[i], sizeof(text[i]), "%s%s", inside || special ? "" : "\xE2\x96\x81",
                 inside ? p + 2 : p);
        pieces[i] = text[i];
    }
    made_strs(&m, "tokenizer.ggml.tokens", pieces, bert_vocab);
    for (size_t i = 0; i < b->count; i++)
        made_data(&m, b->tensors[i].gguf, b->tensors[i].cols, b->tensors[i].rows, 0,
                  b->tensors[i].data, elems(&b->tensors[i]) * sizeof(float));
    made_write(&m, path);
    made_done(&m);
}

/* ---- what must come out
 * -------------------------------------------------------------------------- */

static void linear(const struct bert *b, int layer, const char *name, const double *x, double *y)
{
    char *weight = mem_format("blk.%d.%s.weight", layer, name);
    char *bias = mem_format("blk.%d.%s.bias", layer, name);
    const struct bert_tensor *w = bert_find(b, weight), *c = bert_find(b, bias);
    for (uint32_t r = 0; r < w->rows; r++) {
        y[r] = (double)c->data[r];
        for (uint32_t i = 0; i < w->cols; i++)
            y[r] += (double)w->data[(size_t)r * w->cols + i] * x[i];
    }
    free(weight);
    free(bias);
}

static void norm(const struct bert *b, const char *name, double *x)
{
    char *weight = mem_format("%s.weight", name), *bias = mem_format("%s.bias", name);
    const float *w = bert_find(b, weight)->data, *c = bert_find(b, bias)->data;
    double mean = 0.0, variance = 0.0;
    for (int i = 0; i < BERT_WIDTH; i++)
        mean += x[i] / BERT_WIDTH;
    for (int i = 0; i < BERT_WIDTH; i++)
        variance += (x[i] - mean) * (x[i] - mean) / BERT_WIDTH;
    for (int i = 0; i < BERT_WIDTH; i++)
        x[i] = (x[i] - mean) / sqrt(variance + 1e-12) * (double)w[i] + (double)c[i];
    free(weight);
    free(bias);
}

static void norm_of(const struct bert *b, int layer, const char *name, double *x)
{
    char *full = mem_format("blk.%d.%s", layer, name);
    norm(b, full, x);
    free(full);
}

enum { TOKENS_MAX = BERT_CONTEXT };
static double x[TOKENS_MAX][BERT_WIDTH], q[TOKENS_MAX][BERT_WIDTH], k[TOKENS_MAX][BERT_WIDTH],
    v[TOKENS_MAX][BERT_WIDTH], o[TOKENS_MAX][BERT_WIDTH];

static void attend(size_t n, size_t t, int head)
{
    const int hd = BERT_WIDTH / BERT_HEADS, at = head * hd;
    double p[TOKENS_MAX], sum = 0.0;
    for (size_t u = 0; u < n; u++) {
        p[u] = 0.0;
        for (int i = 0; i < hd; i++)
            p[u] += q[t][at + i] * k[u][at + i];
        p[u] = exp(p[u] / sqrt((double)hd));
        sum += p[u];
    }
    for (int i = 0; i < hd; i++) {
        o[t][at + i] = 0.0;
        for (size_t u = 0; u < n; u++)
            o[t][at + i] += p[u] / sum * v[u][at + i];
    }
}

static void layer(const struct bert *b, int l, size_t n)
{
    double y[BERT_FFN], z[BERT_WIDTH];
    for (size_t t = 0; t < n; t++) {
        linear(b, l, "attn_q", x[t], q[t]);
        linear(b, l, "attn_k", x[t], k[t]);
        linear(b, l, "attn_v", x[t], v[t]);
    }
    for (size_t t = 0; t < n; t++)
        for (int h = 0; h < BERT_HEADS; h++)
            attend(n, t, h);
    for (size_t t = 0; t < n; t++) {
        linear(b, l, "attn_output", o[t], z);
        for (int i = 0; i < BERT_WIDTH; i++)
            x[t][i] += z[i];
        norm_of(b, l, "attn_output_norm", x[t]);
        linear(b, l, "ffn_up", x[t], y);
        for (int i = 0; i < BERT_FFN; i++)
            y[i] *= 0.5 * (1.0 + erf(y[i] / sqrt(2.0)));
        linear(b, l, "ffn_down", y, z);
        for (int i = 0; i < BERT_WIDTH; i++)
            x[t][i] += z[i];
        norm_of(b, l, "layer_output_norm", x[t]);
    }
}

void bert_answer(const struct bert *b, const int32_t *ids, size_t count, bool first_token,
                 double *ret)
{
    size_t n = count + 2;
    const float *words = bert_find(b, "token_embd.weight")->data;
    const float *places = bert_find(b, "position_embd.weight")->data;
    const float *types = bert_find(b, "token_types.weight")->data;
    for (size_t t = 0; t < n; t++) {
        int32_t id = t == 0 ? 2 : t == n - 1 ? 3 : ids[t - 1];
        for (int i = 0; i < BERT_WIDTH; i++)
            x[t][i] = (double)words[id * BERT_WIDTH + i] +
                      (double)places[t * BERT_WIDTH + (size_t)i] + (double)types[i];
        norm(b, "token_embd_norm", x[t]);
    }
    for (int l = 0; l < BERT_LAYERS; l++)
        layer(b, l, n);
    double length = 0.0;
    for (int i = 0; i < BERT_WIDTH; i++) {
        ret[i] = first_token ? x[0][i] : 0.0;
        for (size_t t = 0; t < n && !first_token; t++)
            ret[i] += x[t][i] / (double)n;
        length += ret[i] * ret[i];
    }
    for (int i = 0; i < BERT_WIDTH; i++)
        ret[i] /= sqrt(length);
}
