/* Hyperparameters of a model from GGUF metadata. Each number is checked where it is read, with the
 * key's name in the message; what is left to later code is a struct whose fields are consistent
 * with each other and with the tensor table. Stricter than common engines on purpose: a NaN rope
 * base or an odd rotation gives fluent nonsense elsewhere. */
#include "experts/gguf.h"
#include "experts/model.h"

#include <math.h>
#include <string.h>

#define HEAD_DIM_MAX 1024
#define GEMMA2_27B_LAYERS 46

static const char *const arch_names[MODEL_ARCHS] = {"llama", "qwen2", "qwen3", "gemma2"};

const char *model_arch_name(enum model_arch arch)
{
    return arch < MODEL_ARCHS ? arch_names[arch] : "unknown";
}

bool model_shape_equal(const struct model_shape *a, const struct model_shape *b)
{
    /* model_parse zeroes the struct first, so padding compares equal too. */
    return memcmp(a, b, sizeof(*a)) == 0;
}

/* ---- keys: the first error sticks, later reads do nothing ---- */

struct reader {
    const struct gguf *g;
    const char *arch;
    struct err *e;
    enum err_code rc;
};

static const char *key_name(const struct reader *r, const char *suffix, char key[128])
{
    snprintf(key, 128, "%s.%s", r->arch, suffix);
    return key;
}

static void fail(struct reader *r, enum err_code code, const char *fmt, ...) BASE_PRINTF(3, 4);
static void fail(struct reader *r, enum err_code code, const char *fmt, ...)
{
    char msg[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof(msg), fmt, ap);
    va_end(ap);
    r->rc = err_set(r->e, code, "%s: %s", r->g->label, msg);
}

/* An integer key within [min, max]; absent = `fallback`, or an error if that is 0. */
static uint32_t read_u32(struct reader *r, const char *suffix, uint32_t min, uint32_t max,
                         uint32_t fallback)
{
    char key[128];
    uint64_t v = 0;
    key_name(r, suffix, key);
    if (r->rc != ERR_OK || (fallback && !gguf_has(r->g, key)))
        return fallback;
    r->rc = gguf_get_u64(r->g, key, &v, r->e);
    if (r->rc == ERR_NOT_FOUND)
        fail(r, ERR_CORRUPT, "required key '%s' is missing", key);
    if (r->rc == ERR_OK && (v < min || v > max))
        fail(r, ERR_CORRUPT, "'%s' is %llu; it must be from %u to %u", key, (unsigned long long)v,
             min, max);
    return r->rc == ERR_OK ? (uint32_t)v : 0;
}

/* A number within [min, max]; absent = `fallback`, or an error if that is NaN. */
static double read_f64(struct reader *r, const char *suffix, double min, double max,
                       double fallback)
{
    char key[128];
    double v = 0;
    key_name(r, suffix, key);
    if (r->rc != ERR_OK || (!isnan(fallback) && !gguf_has(r->g, key)))
        return fallback;
    r->rc = gguf_get_f64(r->g, key, &v, r->e);
    if (r->rc == ERR_NOT_FOUND)
        fail(r, ERR_CORRUPT, "required key '%s' is missing", key);
    if (r->rc == ERR_OK && !(v >= min && v <= max))
        fail(r, ERR_CORRUPT, "'%s' is %g; it must be from %g to %g", key, v, min, max);
    return v;
}

static struct gguf_str read_str(struct reader *r, const char *key)
{
    struct gguf_str s = {"", 0};
    if (r->rc == ERR_OK && gguf_has(r->g, key))
        r->rc = gguf_get_str(r->g, key, &s, r->e);
    return s;
}

/* ---- parts ---- */

static void read_arch(struct reader *r, struct model_shape *m)
{
    char shown[96];
    if (!gguf_has(r->g, "general.architecture")) {
        fail(r, ERR_CORRUPT, "required key 'general.architecture' is missing");
        return;
    }
    struct gguf_str type = read_str(r, "general.type");
    struct gguf_str arch = read_str(r, "general.architecture");
    if (r->rc != ERR_OK)
        return;
    if (type.len && !gguf_str_is(type, "model")) {
        bool adapter = gguf_str_is(type, "adapter");
        fail(r, ERR_INVALID, "general.type is '%s', not a model%s",
             gguf_show(type.data, type.len, shown),
             adapter ? "; add an adapter together with its base expert" : "");
        return;
    }
    for (unsigned i = 0; i < MODEL_ARCHS; i++) {
        if (gguf_str_is(arch, arch_names[i])) {
            m->arch = (enum model_arch)i;
            r->arch = arch_names[i];
            return;
        }
    }
    fail(r, ERR_UNSUPPORTED,
         "architecture '%s' cannot be run; llama, qwen2, qwen3 and gemma2 can be",
         gguf_show(arch.data, arch.len, shown));
}

static void read_sizes(struct reader *r, struct model_shape *m)
{
    char key[128];
    m->layers = read_u32(r, "block_count", 1, MODEL_LAYERS_MAX, 0);
    m->width = read_u32(r, "embedding_length", 1, MODEL_WIDTH_MAX, 0);
    m->ffn = read_u32(r, "feed_forward_length", 1, MODEL_WIDTH_MAX, 0);
    m->context = read_u32(r, "context_length", 1, MODEL_CONTEXT_MAX, 0);
    m->heads = read_u32(r, "attention.head_count", 1, MODEL_WIDTH_MAX, 0);
    m->kv_heads =
        read_u32(r, "attention.head_count_kv", 1, MODEL_WIDTH_MAX, m->heads ? m->heads : 1);
    if (r->rc != ERR_OK)
        return;
    if (m->kv_heads > m->heads || m->heads % m->kv_heads != 0) {
        fail(r, ERR_CORRUPT, "attention.head_count_kv %u does not divide attention.head_count %u",
             m->kv_heads, m->heads);
        return;
    }
    bool has_length = gguf_has(r->g, key_name(r, "attention.key_length", key));
    if (!has_length && m->width % m->heads != 0) {
        fail(r, ERR_CORRUPT, "attention.head_count %u does not divide embedding_length %u",
             m->heads, m->width);
        return;
    }
    uint32_t split = m->width / m->heads;
    m->head_dim = read_u32(r, "attention.key_length", 1, HEAD_DIM_MAX, split ? split : 1);
    uint32_t value_len = read_u32(r, "attention.value_length", 1, HEAD_DIM_MAX, m->head_dim);
    if (r->rc == ERR_OK && value_len != m->head_dim)
        fail(r, ERR_UNSUPPORTED, "attention.value_length %u differs from the key length %u",
             value_len, m->head_dim);
    if (r->rc == ERR_OK && m->head_dim > HEAD_DIM_MAX)
        fail(r, ERR_UNSUPPORTED, "heads of %u elements; the limit is %d", m->head_dim,
             HEAD_DIM_MAX);
    if (r->rc == ERR_OK && (uint64_t)m->heads * m->head_dim > MODEL_WIDTH_MAX)
        fail(r, ERR_CORRUPT, "%u heads of %u elements are too wide", m->heads, m->head_dim);
    key_name(r, "expert_count", key);
    uint64_t experts = 0;
    if (r->rc == ERR_OK && gguf_has(r->g, key))
        r->rc = gguf_get_u64(r->g, key, &experts, r->e);
    if (r->rc == ERR_OK && experts > 0)
        fail(r, ERR_UNSUPPORTED, "'%s' is %llu: mixture-of-experts layers cannot be run", key,
             (unsigned long long)experts);
}

static void read_yarn(struct reader *r, struct model_shape *m)
{
    m->rope_original_context =
        read_u32(r, "rope.scaling.original_context_length", 1, MODEL_CONTEXT_MAX, m->context);
    m->yarn_beta_fast = read_f64(r, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0);
    m->yarn_beta_slow = read_f64(r, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0);
    m->rope_attn_factor = read_f64(r, "rope.scaling.yarn_attn_factor", 1e-3, 1e3,
                                   read_f64(r, "rope.scaling.attn_factor", 1e-3, 1e3, 1.0));
    if (r->rc == ERR_OK && m->rope_base <= 1.0)
        fail(r, ERR_CORRUPT, "YaRN needs a rope base above 1, not %g", m->rope_base);
}

static void read_rope(struct reader *r, struct model_shape *m)
{
    char key[128], shown[96];
    if (r->rc != ERR_OK)
        return;
    m->rope_style = m->arch == MODEL_LLAMA ? RDU_ROPE_PAIRS : RDU_ROPE_HALVES;
    m->rope_dims = read_u32(r, "rope.dimension_count", 2, MODEL_ROPE_DIMS_MAX, m->head_dim);
    m->rope_base = read_f64(r, "rope.freq_base", 1e-6, 1e15, 10000.0);
    m->rope_factor = 1.0;
    m->rope_attn_factor = 1.0;
    if (r->rc == ERR_OK && (m->rope_dims % 2 != 0 || m->rope_dims > m->head_dim)) {
        fail(r, ERR_CORRUPT,
             "rope.dimension_count is %u; it must be even and at most the head's %u", m->rope_dims,
             m->head_dim);
        return;
    }
    struct gguf_str kind = read_str(r, key_name(r, "rope.scaling.type", key));
    /* Before scaling had a type, linear scaling was this key alone. */
    double linear = read_f64(r, "rope.scale_linear", 1e-3, 1e6, 1.0);
    double factor = read_f64(r, "rope.scaling.factor", 0.0, 1e6, linear);
    if (r->rc != ERR_OK || gguf_str_is(kind, "none") || (kind.len == 0 && factor == 1.0))
        return;
    /* Converters write factor 0 when the original configuration had none. */
    m->rope_factor = factor > 0 ? factor : 1.0;
    if (kind.len == 0 || gguf_str_is(kind, "linear")) {
        m->rope_scaling = MODEL_ROPE_LINEAR;
    } else if (gguf_str_is(kind, "yarn")) {
        m->rope_scaling = MODEL_ROPE_YARN;
        read_yarn(r, m);
    } else {
        fail(r, ERR_UNSUPPORTED, "'%s' is '%s'; none, linear and yarn can be run", key,
             gguf_show(kind.data, kind.len, shown));
    }
}

static void read_attention(struct reader *r, struct model_shape *m)
{
    if (r->rc != ERR_OK)
        return;
    bool gemma = m->arch == MODEL_GEMMA2;
    m->rms_eps = (float)read_f64(r, "attention.layer_norm_rms_epsilon", 1e-12, 1.0, (double)NAN);
    /* Gemma 2's 27B form divides by the width per head, all others by the head's size. */
    uint32_t by =
        gemma && m->layers == GEMMA2_27B_LAYERS ? BASE_MAX(m->width / m->heads, 1u) : m->head_dim;
    m->attn_scale = (float)read_f64(r, "attention.scale", 1e-6, 1e3, 1.0 / sqrt((double)by));
    m->attn_softcap = gemma ? (float)read_f64(r, "attn_logit_softcapping", 0.0, 1e6, 50.0) : 0.0F;
    m->logit_softcap = gemma ? (float)read_f64(r, "final_logit_softcapping", 0.0, 1e6, 30.0) : 0.0F;
    m->window = 0;
    char key[128];
    if (gguf_has(r->g, key_name(r, "attention.sliding_window", key))) {
        uint64_t w = 0;
        if (r->rc == ERR_OK)
            r->rc = gguf_get_u64(r->g, key, &w, r->e);
        m->window = w < m->context ? (uint32_t)w : 0;
    } else if (gemma) {
        m->window = m->context > 4096 ? 4096 : 0;
    }
    m->window_pattern = gemma ? 2 : 0;
    m->embed_scale = gemma ? sqrtf((float)m->width) : 1.0F;
    m->gelu = gemma;
    m->post_norms = gemma;
    m->qk_norm = m->arch == MODEL_QWEN3;
}

/* Optional weights are taken for present in all layers if layer 0 has them; model_check_tensors
 * then requires them everywhere. */
static void read_tensor_facts(struct reader *r, struct model_shape *m)
{
    if (r->rc != ERR_OK)
        return;
    const struct gguf_tensor *embd = gguf_find_tensor(r->g, "token_embd.weight");
    if (!embd) {
        fail(r, ERR_CORRUPT, "tensor 'token_embd.weight' is missing");
        return;
    }
    if (embd->dim[1] > MODEL_VOCAB_MAX || embd->dim[2] != 1 || embd->dim[3] != 1) {
        fail(r, ERR_CORRUPT, "tensor 'token_embd.weight' has an impossible shape");
        return;
    }
    m->vocab = (uint32_t)embd->dim[1];
    m->tied_head = !gguf_find_tensor(r->g, "output.weight");
    m->qkv_bias = m->arch == MODEL_QWEN2 || gguf_find_tensor(r->g, "blk.0.attn_q.bias");
    m->out_bias = gguf_find_tensor(r->g, "blk.0.attn_output.bias") != NULL;
    if (gguf_find_tensor(r->g, "rope_freqs.weight"))
        m->rope_factors_count = m->rope_dims / 2;
}

/* ---- vocabulary ---- */

static void check_count(struct reader *r, const char *key, const struct model_shape *m,
                        bool required)
{
    size_t n = 0;
    if (r->rc != ERR_OK || (!required && !gguf_has(r->g, key)))
        return;
    r->rc = gguf_get_array(r->g, key, &n, r->e);
    if (r->rc == ERR_NOT_FOUND)
        fail(r, ERR_CORRUPT, "required key '%s' is missing", key);
    if (r->rc == ERR_OK && n != m->vocab)
        fail(r, ERR_CORRUPT, "'%s' has %zu elements, token_embd.weight has %u rows", key, n,
             m->vocab);
}

static void check_vocab(struct reader *r, const struct model_shape *m)
{
    struct gguf_str first;
    const void *p;
    size_t n;
    check_count(r, "tokenizer.ggml.tokens", m, true);
    if (r->rc == ERR_OK)
        r->rc = gguf_array_str(r->g, "tokenizer.ggml.tokens", 0, &first, r->e);
    check_count(r, "tokenizer.ggml.token_type", m, false);
    if (r->rc == ERR_OK && gguf_has(r->g, "tokenizer.ggml.token_type"))
        r->rc = gguf_array_i32(r->g, "tokenizer.ggml.token_type", &p, &n, r->e);
    check_count(r, "tokenizer.ggml.scores", m, false);
    if (r->rc == ERR_OK && gguf_has(r->g, "tokenizer.ggml.scores"))
        r->rc = gguf_array_f32(r->g, "tokenizer.ggml.scores", &p, &n, r->e);
    struct gguf_str kind = read_str(r, "tokenizer.ggml.model");
    if (r->rc == ERR_OK && kind.len == 0)
        fail(r, ERR_CORRUPT, "required key 'tokenizer.ggml.model' is missing");
    if (r->rc == ERR_OK && gguf_str_is(kind, "gpt2") && !gguf_has(r->g, "tokenizer.ggml.merges"))
        fail(r, ERR_CORRUPT, "a BPE vocabulary needs 'tokenizer.ggml.merges'");
}

enum err_code model_parse(const struct gguf *g, struct model_shape *ret, struct err *e)
{
    struct err local;
    struct reader r = {.g = g, .e = e ? e : &local, .rc = ERR_OK};
    struct model_shape m;
    memset(&m, 0, sizeof(m));
    read_arch(&r, &m);
    if (r.rc != ERR_OK)
        return r.rc;
    read_sizes(&r, &m);
    read_rope(&r, &m);
    read_attention(&r, &m);
    read_tensor_facts(&r, &m);
    if (r.rc == ERR_OK)
        r.rc = model_check_tensors(g, &m, r.e);
    if (r.rc == ERR_OK)
        check_vocab(&r, &m);
    if (r.rc == ERR_OK && m.rope_factors_count && g->files)
        r.rc = model_read_rope_factors(g, &m, r.e);
    if (r.rc == ERR_OK)
        memcpy(ret, &m, sizeof(m));
    return r.rc;
}
