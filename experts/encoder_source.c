/* Where an encoder's numbers come from. A folder in Hugging Face's layout (config.json,
 * model.safetensors, vocab.txt or tokenizer.json, optionally what sentence-transformers adds) and a
 * GGUF file of architecture bert end in the same place: a shape, a vocabulary that the tokenizer
 * opens, and weights by the graph's names. */
#include "experts/encoder.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "experts/gguf.h"

#define JSON_BYTES_MAX (64 * BASE_MIB)
#define WORD_START "\xE2\x96\x81" /* how GGUF marks a piece that begins a word */

/* ---- JSON files of a folder ------------------------------------------------------------------ */

static enum err_code read_json(const char *dir, const char *name, json_t **ret, struct err *e)
{
    struct buf text = {0};
    json_error_t at;
    char *path = mem_format("%s/%s", dir, name);
    enum err_code code = file_read(path, JSON_BYTES_MAX, &text, e);
    if (code == ERR_OK) {
        *ret = json_loadb(text.data ? text.data : "", text.len, 0, &at);
        if (!json_is_object(*ret)) {
            json_decref(*ret);
            *ret = NULL;
            code = err_set(e, ERR_CORRUPT, "'%.200s' is no JSON object (line %d: %s)", path,
                           at.line, at.text);
        }
    }
    buf_done(&text);
    free(path);
    return code;
}

/* The same for files that need not be there: NULL then, or when they cannot be read. */
static json_t *read_json_optional(const char *dir, const char *name)
{
    json_t *root = NULL;
    struct err e;
    return read_json(dir, name, &root, &e) == ERR_OK ? root : NULL;
}

static enum err_code config_size(const json_t *config, const char *key, uint32_t max, uint32_t *ret,
                                 struct err *e)
{
    const json_t *v = json_object_get(config, key);
    if (!json_is_integer(v) || json_integer_value(v) < 1 || json_integer_value(v) > (json_int_t)max)
        return err_set(e, ERR_CORRUPT, "config.json: %s must be a whole number from 1 to %u", key,
                       max);
    *ret = (uint32_t)json_integer_value(v);
    return ERR_OK;
}

/* A key that must have this value, or be absent. */
static enum err_code config_is(const json_t *config, const char *key, const char *want,
                               struct err *e)
{
    const char *v = json_string_value(json_object_get(config, key));
    if (v == NULL || strcmp(v, want) == 0)
        return ERR_OK;
    return err_set(e, ERR_UNSUPPORTED, "config.json: %s is \"%.40s\", only \"%s\" is run here", key,
                   v, want);
}

static enum err_code parse_config(const json_t *c, struct encoder_shape *m, struct err *e)
{
    const json_t *type = json_object_get(c, "model_type");
    const json_t *eps = json_object_get(c, "layer_norm_eps");
    if (!json_is_string(type))
        return err_set(e, ERR_CORRUPT, "config.json: model_type is missing");
    enum err_code code = config_is(c, "model_type", "bert", e);
    if (code == ERR_OK)
        code = config_is(c, "hidden_act", "gelu", e);
    if (code == ERR_OK)
        code = config_is(c, "position_embedding_type", "absolute", e);
    if (code == ERR_OK)
        code = config_size(c, "num_hidden_layers", ENCODER_LAYERS_MAX, &m->layers, e);
    if (code == ERR_OK)
        code = config_size(c, "hidden_size", ENCODER_WIDTH_MAX, &m->width, e);
    if (code == ERR_OK)
        code = config_size(c, "num_attention_heads", ENCODER_WIDTH_MAX, &m->heads, e);
    if (code == ERR_OK)
        code = config_size(c, "intermediate_size", ENCODER_WIDTH_MAX * 8, &m->ffn, e);
    if (code == ERR_OK)
        code = config_size(c, "vocab_size", 1u << 22, &m->vocab, e);
    if (code == ERR_OK)
        code = config_size(c, "max_position_embeddings", ENCODER_CONTEXT_MAX, &m->context, e);
    m->norm_eps = json_is_number(eps) ? (float)json_number_value(eps) : 1e-12f;
    return code;
}

/* sentence-transformers' files; without them a plain BERT is averaged, as its own docs do. */
static enum err_code parse_pooling(const char *dir, struct encoder_source *s, struct err *e)
{
    json_t *pooling = read_json_optional(dir, "1_Pooling/config.json");
    json_t *limits = read_json_optional(dir, "sentence_bert_config.json");
    json_t *tokenizer = read_json_optional(dir, "tokenizer_config.json");
    bool mean = json_is_true(json_object_get(pooling, "pooling_mode_mean_tokens"));
    bool first = json_is_true(json_object_get(pooling, "pooling_mode_cls_token"));
    const json_t *most = json_object_get(limits, "max_seq_length");
    enum err_code code = ERR_OK;
    if (pooling && mean == first)
        code = err_set(e, ERR_UNSUPPORTED,
                       "1_Pooling/config.json: only the mean or the first token is pooled here");
    if (json_is_false(json_object_get(tokenizer, "do_lower_case")))
        code =
            err_set(e, ERR_UNSUPPORTED,
                    "tokenizer_config.json: cased vocabularies are not read here; use an uncased "
                    "model");
    s->shape.pooling = first ? ENCODER_POOL_FIRST : ENCODER_POOL_MEAN;
    s->tokens_max = s->shape.context;
    if (json_is_integer(most) && json_integer_value(most) >= 3)
        s->tokens_max = (uint32_t)BASE_MIN(json_integer_value(most), (json_int_t)s->shape.context);
    json_decref(pooling);
    json_decref(limits);
    json_decref(tokenizer);
    return code;
}

/* ---- the vocabulary, as a GGUF header ---------------------------------------------------------
 */

struct pieces {
    struct gguf_str *text; /* [count]; data == NULL = a hole in the numbering */
    size_t count;
};

static void put_raw_str(struct buf *out, const char *data, size_t len)
{
    uint64_t n = len;
    buf_append(out, &n, sizeof(n));
    buf_append(out, data, len);
}

static void put_array(struct buf *out, const char *key, uint32_t kind, uint64_t count)
{
    const uint32_t head[2] = {GGUF_ARRAY, kind};
    put_raw_str(out, key, strlen(key));
    buf_append(out, head, sizeof(head));
    buf_append(out, &count, sizeof(count));
}

static bool is_special(struct gguf_str s)
{
    return s.len > 2 && s.data[0] == '[' && s.data[s.len - 1] == ']';
}

static bool is_inside(struct gguf_str s)
{
    return s.len > 2 && s.data[0] == '#' && s.data[1] == '#';
}

static void put_piece(struct buf *out, struct gguf_str s)
{
    if (s.data == NULL) {
        put_raw_str(out, "", 0);
    } else if (is_special(s)) {
        put_raw_str(out, s.data, s.len);
    } else if (is_inside(s)) {
        put_raw_str(out, s.data + 2, s.len - 2);
    } else {
        uint64_t n = s.len + strlen(WORD_START);
        buf_append(out, &n, sizeof(n));
        buf_puts(out, WORD_START);
        buf_append(out, s.data, s.len);
    }
}

static int64_t find_piece(const struct pieces *p, const char *text)
{
    for (size_t i = 0; i < p->count; i++)
        if (p->text[i].len == strlen(text) && memcmp(p->text[i].data, text, p->text[i].len) == 0)
            return (int64_t)i;
    return -1;
}

static enum err_code vocab_from_pieces(const struct pieces *p, const char *label, struct gguf **ret,
                                       struct err *e)
{
    int64_t unknown = find_piece(p, "[UNK]"), cls = find_piece(p, "[CLS]"),
            sep = find_piece(p, "[SEP]");
    struct buf out = {0};
    if (unknown < 0 || cls < 0 || sep < 0)
        return err_set(e, ERR_CORRUPT, "%s: the vocabulary lacks [UNK], [CLS] or [SEP]", label);
    gguf_put_start(&out, 0, 7);
    gguf_put_kv_str(&out, "general.architecture", "bert");
    gguf_put_kv_str(&out, "tokenizer.ggml.model", "bert");
    gguf_put_kv_u32(&out, "tokenizer.ggml.unknown_token_id", (uint32_t)unknown);
    gguf_put_kv_u32(&out, "tokenizer.ggml.bos_token_id", (uint32_t)cls);
    gguf_put_kv_u32(&out, "tokenizer.ggml.eos_token_id", (uint32_t)sep);
    put_array(&out, "tokenizer.ggml.tokens", GGUF_STR, p->count);
    for (size_t i = 0; i < p->count; i++)
        put_piece(&out, p->text[i]);
    put_array(&out, "tokenizer.ggml.token_type", GGUF_I32, p->count);
    for (size_t i = 0; i < p->count; i++) {
        int32_t type = is_special(p->text[i]) ? 3
                       : p->text[i].data      ? 1
                                              : 5; /* control, normal, unused */
        buf_append(&out, &type, sizeof(type));
    }
    enum err_code code = gguf_parse(out.data, out.len, UINT64_MAX, label, ret, e);
    buf_done(&out);
    return code;
}

/* One piece a line, numbered from 0. */
static enum err_code vocab_from_lines(const struct buf *text, const char *label, struct gguf **ret,
                                      struct err *e)
{
    struct pieces p = {0};
    size_t lines = 1;
    for (size_t i = 0; i < text->len; i++)
        lines += text->data[i] == '\n';
    p.text = mem_array(lines, sizeof(*p.text));
    for (size_t at = 0; at < text->len;) {
        const char *end = memchr(text->data + at, '\n', text->len - at);
        size_t len = end ? (size_t)(end - text->data) - at : text->len - at;
        size_t next = at + len + 1;
        if (len > 0 && text->data[at + len - 1] == '\r')
            len--;
        p.text[p.count++] = (struct gguf_str){text->data + at, len};
        at = next;
    }
    enum err_code code = vocab_from_pieces(&p, label, ret, e);
    free(p.text);
    return code;
}

/* tokenizer.json: {"model": {"type": "WordPiece", "vocab": {piece: id}}}. */
static enum err_code vocab_from_tokenizer(const char *dir, uint32_t vocab, struct gguf **ret,
                                          struct err *e)
{
    json_t *root = NULL, *id;
    const char *text;
    enum err_code code = read_json(dir, "tokenizer.json", &root, e);
    if (code != ERR_OK)
        return code;
    json_t *model = json_object_get(root, "model"), *table = json_object_get(model, "vocab");
    const char *type = json_string_value(json_object_get(model, "type"));
    struct pieces p = {.text = mem_array(vocab, sizeof(*p.text)), .count = vocab};
    if (!json_is_object(table) || (type != NULL && strcmp(type, "WordPiece") != 0))
        code = err_set(e, ERR_UNSUPPORTED, "%.200s/tokenizer.json is no WordPiece vocabulary", dir);
    json_object_foreach(table, text, id)
    {
        if (code != ERR_OK)
            break;
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= (json_int_t)vocab)
            code = err_set(e, ERR_CORRUPT,
                           "%.200s/tokenizer.json: piece '%.40s' has an id outside "
                           "the %u rows of the embedding",
                           dir, text, vocab);
        else
            p.text[json_integer_value(id)] = (struct gguf_str){text, strlen(text)};
    }
    if (code == ERR_OK)
        code = vocab_from_pieces(&p, "tokenizer.json", ret, e);
    free(p.text);
    json_decref(root);
    return code;
}

static enum err_code open_vocab(const char *dir, uint32_t vocab, struct gguf **ret, struct err *e)
{
    struct buf text = {0};
    char *path = mem_format("%s/vocab.txt", dir);
    enum err_code code = file_read(path, JSON_BYTES_MAX, &text, e);
    free(path);
    if (code == ERR_OK)
        code = vocab_from_lines(&text, "vocab.txt", ret, e);
    else if (code == ERR_NOT_FOUND)
        code = vocab_from_tokenizer(dir, vocab, ret, e);
    buf_done(&text);
    return code;
}

/* ---- opening -----------------------------------------------------------------------------------
 */

static enum err_code open_folder(const char *dir, struct encoder_source *s, struct err *e)
{
    json_t *config = NULL;
    enum err_code code = read_json(dir, "config.json", &config, e);
    if (code == ERR_OK)
        code = parse_config(config, &s->shape, e);
    json_decref(config);
    if (code == ERR_OK)
        code = parse_pooling(dir, s, e);
    if (code == ERR_OK)
        code = open_vocab(dir, s->shape.vocab, &s->vocab, e);
    if (code != ERR_OK)
        return code;
    char *path = mem_format("%s/model.safetensors", dir);
    code = safetensors_open(path, &s->tensors, e);
    free(path);
    if (code == ERR_OK)
        s->prefix =
            safetensors_find(s->tensors, "embeddings.word_embeddings.weight") ? "" : "bert.";
    return code;
}

static enum err_code gguf_size(const struct gguf *g, const char *key, uint32_t max, uint32_t *ret,
                               struct err *e)
{
    uint64_t v = 0;
    enum err_code code = gguf_get_u64(g, key, &v, e);
    if (code == ERR_OK && (v < 1 || v > max))
        code = err_set(e, ERR_CORRUPT, "%s is %llu, it must be from 1 to %u", key,
                       (unsigned long long)v, max);
    *ret = (uint32_t)v;
    return code;
}

static enum err_code gguf_pooling(const struct gguf *g, struct encoder_shape *m, struct err *e)
{
    uint64_t type = 1;
    enum err_code code = ERR_OK;
    if (gguf_has(g, "bert.pooling_type"))
        code = gguf_get_u64(g, "bert.pooling_type", &type, e);
    if (code == ERR_OK && type != 1 && type != 2)
        code = err_set(e, ERR_UNSUPPORTED,
                       "bert.pooling_type %llu: only the mean (1) or the first token (2) is pooled "
                       "here",
                       (unsigned long long)type);
    m->pooling = type == 2 ? ENCODER_POOL_FIRST : ENCODER_POOL_MEAN;
    return code;
}

static enum err_code open_gguf(const char *path, struct encoder_source *s, struct err *e)
{
    struct gguf_str arch = {0};
    double eps = 1e-12;
    struct encoder_shape *m = &s->shape;
    s->is_gguf = true;
    enum err_code code = gguf_open(path, &s->vocab, e);
    if (code == ERR_OK)
        code = gguf_get_str(s->vocab, "general.architecture", &arch, e);
    if (code == ERR_OK && (arch.len != 4 || memcmp(arch.data, "bert", 4) != 0))
        code = err_set(e, ERR_UNSUPPORTED, "'%.200s' is of architecture %.*s, not bert", path,
                       (int)BASE_MIN(arch.len, (size_t)40), arch.data);
    if (code == ERR_OK)
        code = gguf_size(s->vocab, "bert.block_count", ENCODER_LAYERS_MAX, &m->layers, e);
    if (code == ERR_OK)
        code = gguf_size(s->vocab, "bert.embedding_length", ENCODER_WIDTH_MAX, &m->width, e);
    if (code == ERR_OK)
        code = gguf_size(s->vocab, "bert.attention.head_count", ENCODER_WIDTH_MAX, &m->heads, e);
    if (code == ERR_OK)
        code = gguf_size(s->vocab, "bert.feed_forward_length", ENCODER_WIDTH_MAX * 8, &m->ffn, e);
    if (code == ERR_OK)
        code = gguf_size(s->vocab, "bert.context_length", ENCODER_CONTEXT_MAX, &m->context, e);
    if (code == ERR_OK && gguf_has(s->vocab, "bert.attention.layer_norm_epsilon"))
        code = gguf_get_f64(s->vocab, "bert.attention.layer_norm_epsilon", &eps, e);
    if (code == ERR_OK)
        code = gguf_pooling(s->vocab, m, e);
    m->norm_eps = (float)eps;
    const struct gguf_tensor *embd =
        code == ERR_OK ? gguf_find_tensor(s->vocab, "token_embd.weight") : NULL;
    if (code == ERR_OK && (embd == NULL || embd->dim[1] < 1 || embd->dim[1] > (1u << 22)))
        code = err_set(e, ERR_CORRUPT, "'%.200s' has no usable token_embd.weight", path);
    if (embd)
        m->vocab = (uint32_t)embd->dim[1];
    s->tokens_max = m->context;
    return code;
}

static enum err_code check_shape(const struct encoder_shape *m, struct err *e)
{
    if (m->width % m->heads != 0 || m->width / m->heads % 2 != 0)
        return err_set(e, ERR_UNSUPPORTED, "%u columns do not split into %u heads of even size",
                       m->width, m->heads);
    if (m->context < 3)
        return err_set(e, ERR_UNSUPPORTED, "a context of %u tokens holds no text", m->context);
    if (!(m->norm_eps >= 0.0f && m->norm_eps < 1.0f))
        return err_set(e, ERR_CORRUPT, "the epsilon of the norms is not between 0 and 1");
    return ERR_OK;
}

enum err_code encoder_source_open(const char *path, struct encoder_source *ret, struct err *e)
{
    struct stat st;
    *ret = (struct encoder_source){.prefix = "", .path = mem_strdup(path)};
    enum err_code code;
    if (stat(path, &st) != 0)
        code = err_set_errno(e, ERR_NOT_FOUND, "cannot open the encoder '%.200s'", path);
    else if (S_ISDIR(st.st_mode))
        code = open_folder(path, ret, e);
    else
        code = open_gguf(path, ret, e);
    if (code == ERR_OK)
        code = check_shape(&ret->shape, e);
    if (code != ERR_OK)
        encoder_source_close(ret);
    return code;
}

void encoder_source_close(struct encoder_source *s)
{
    gguf_close(&s->vocab);
    safetensors_close(&s->tensors);
    free(s->path);
    s->path = NULL;
}

/* ---- weights ------------------------------------------------------------------------------------
 */

/* The graph's names (GGUF's) and Hugging Face's; the part after the last dot is the same in both.
 */
static const struct {
    const char *slot, *hf;
} names[] = {
    {"token_embd", "embeddings.word_embeddings"},
    {"position_embd", "embeddings.position_embeddings"},
    {"token_types", "embeddings.token_type_embeddings"},
    {"token_embd_norm", "embeddings.LayerNorm"},
    {"attn_q", "attention.self.query"},
    {"attn_k", "attention.self.key"},
    {"attn_v", "attention.self.value"},
    {"attn_output", "attention.output.dense"},
    {"attn_output_norm", "attention.output.LayerNorm"},
    {"ffn_up", "intermediate.dense"},
    {"ffn_down", "output.dense"},
    {"layer_output_norm", "output.LayerNorm"},
};

static enum err_code wrong_shape(const char *path, const char *name, uint32_t rows, uint32_t cols,
                                 struct err *e)
{
    return err_set(e, ERR_CORRUPT, "'%.200s': tensor '%.80s' is missing or not [%u, %u]", path,
                   name, rows, cols);
}

static enum err_code read_safetensor(const struct encoder_source *s, const char *slot, int layer,
                                     uint32_t rows, uint32_t cols, float *dst, struct err *e)
{
    const char *dot = strrchr(slot, '.'), *hf = "?";
    for (size_t i = 0; i < BASE_COUNT(names); i++)
        if (strlen(names[i].slot) == (size_t)(dot - slot) &&
            memcmp(names[i].slot, slot, (size_t)(dot - slot)) == 0)
            hf = names[i].hf;
    char *name = layer < 0 ? mem_format("%s%s%s", s->prefix, hf, dot)
                           : mem_format("%sencoder.layer.%d.%s%s", s->prefix, layer, hf, dot);
    const struct safetensors_tensor *t = safetensors_find(s->tensors, name);
    bool types = strcmp(hf, "embeddings.token_type_embeddings") == 0; /* only its first row */
    bool fits = t != NULL && t->dims >= 1 && t->dim[t->dims - 1] == cols &&
                (types ? t->elems >= cols : t->elems == (uint64_t)rows * cols);
    enum err_code code = ERR_OK;
    if (!fits) {
        code = wrong_shape(s->path, name, rows, cols, e);
    } else if (types) {
        float *all = mem_array((size_t)t->elems, sizeof(float));
        code = safetensors_read(s->tensors, t, all, e);
        memcpy(dst, all, cols * sizeof(float));
        free(all);
    } else {
        code = safetensors_read(s->tensors, t, dst, e);
    }
    free(name);
    return code;
}

static enum err_code read_gguf(const struct encoder_source *s, const char *slot, int layer,
                               uint32_t rows, uint32_t cols, float *dst, struct err *e)
{
    char *name = layer < 0 ? mem_strdup(slot) : mem_format("blk.%d.%s", layer, slot);
    const struct gguf_tensor *t = gguf_find_tensor(s->vocab, name);
    bool types = strcmp(slot, "token_types.weight") == 0;
    enum err_code code = ERR_OK;
    if (t == NULL || t->dim[0] != cols || (types ? t->dim[1] < 1 : t->dim[1] != rows)) {
        code = wrong_shape(s->path, name, rows, cols, e);
    } else {
        void *raw = mem_alloc((size_t)t->bytes);
        size_t row_bytes = (size_t)(t->bytes / t->dim[1] / t->dim[2] / t->dim[3]);
        code = gguf_read_tensor(s->vocab, t, raw, e);
        for (uint32_t r = 0; code == ERR_OK && r < rows; r++)
            rdu_dequant_row(t->type, (char *)raw + r * row_bytes, dst + (size_t)r * cols, cols);
        free(raw);
    }
    free(name);
    return code;
}

enum err_code encoder_source_read(const struct encoder_source *s, const char *slot, int layer,
                                  uint32_t rows, uint32_t cols, float *dst, struct err *e)
{
    if (strcmp(slot, "pool_norm.weight") == 0) {
        for (uint32_t i = 0; i < cols; i++)
            dst[i] = (float)(1.0 / sqrt((double)cols));
        return ERR_OK;
    }
    return s->is_gguf ? read_gguf(s, slot, layer, rows, cols, dst, e)
                      : read_safetensor(s, slot, layer, rows, cols, dst, e);
}
