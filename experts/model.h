/* What a model is, read from its metadata and tensor table: the numbers from which experts/arch_*.c
 * build the program, and the list of weights every layer must bring. Everything is checked here,
 * once, before a byte of weights is copied; later code may rely on it. Private to experts/ and its
 * tests. */
#ifndef SWITCHYARD_EXPERTS_MODEL_H
#define SWITCHYARD_EXPERTS_MODEL_H

#include "experts/experts.h"

enum model_arch { MODEL_LLAMA, MODEL_QWEN2, MODEL_QWEN3, MODEL_GEMMA2, MODEL_ARCHS };
const char *model_arch_name(enum model_arch arch); /* "llama": general.architecture */

enum model_rope_scaling { MODEL_ROPE_PLAIN, MODEL_ROPE_LINEAR, MODEL_ROPE_YARN };

/* Upper bounds: far above any model this server can run, low enough to size tables by. */
#define MODEL_LAYERS_MAX 1024
#define MODEL_WIDTH_MAX (1u << 20)
#define MODEL_CONTEXT_MAX (1u << 22)
#define MODEL_VOCAB_MAX (1u << 22)
#define MODEL_ROPE_DIMS_MAX 1024
#define MODEL_SLOTS_MAX 24

/* Plain values, no pointers: may be copied and compared (model_shape_equal). */
struct model_shape {
    enum model_arch arch;
    uint32_t layers, width, heads, kv_heads, head_dim, ffn, vocab, context;
    float rms_eps;
    float embed_scale;   /* x = embedding * embed_scale; 1 = none */
    float attn_scale;    /* of q.k, 1/sqrt(head_dim) unless the model says otherwise */
    float attn_softcap;  /* 0 = none */
    float logit_softcap; /* 0 = none */
    uint32_t window;     /* sliding attention window in tokens, 0 = none */
    /* Of so many layers the last one sees everything; 0 = all are windowed. */
    uint32_t window_pattern;

    enum rdu_rope rope_style;
    uint32_t rope_dims; /* leading dimensions of a head that rotate; even, <= head_dim */
    double rope_base;
    enum model_rope_scaling rope_scaling;
    double rope_factor;      /* > 0; linear and YaRN */
    double rope_attn_factor; /* YaRN: further factor on cos and sin */
    double yarn_beta_fast, yarn_beta_slow;
    uint32_t rope_original_context;
    uint32_t rope_factors_count; /* rope_dims / 2, or 0 = the model has no rope_freqs.weight */
    float rope_factors[MODEL_ROPE_DIMS_MAX / 2]; /* frequency i is divided by factor i */

    bool gelu;       /* gate activation: tanh-GELU, else SiLU */
    bool tied_head;  /* no output.weight: the head is token_embd.weight */
    bool qk_norm;    /* attn_q_norm.weight, attn_k_norm.weight [head_dim] before RoPE */
    bool qkv_bias;   /* attn_{q,k,v}.bias */
    bool out_bias;   /* attn_output.bias */
    bool post_norms; /* post_attention_norm.weight, post_ffw_norm.weight */
};

/* Hyperparameters, required tensors, their shapes, and the vocabulary's sizes. The tokenizer and
 * the template are checked by their own open functions. rope_factors are left empty when `g` has no
 * file behind it (gguf_parse): the weight set keeps them (set.h). ERR_CORRUPT / ERR_UNSUPPORTED
 * name the key or the tensor. Any thread. */
enum err_code model_parse(const struct gguf *g, struct model_shape *ret,
                          struct err *e) BASE_NODISCARD;
bool model_shape_equal(const struct model_shape *a, const struct model_shape *b);
/* The tensor half of model_parse: every weight there, of the right shape, and no other. */
enum err_code model_check_tensors(const struct gguf *g, const struct model_shape *m,
                                  struct err *e) BASE_NODISCARD;
/* Fill m->rope_factors from the file behind `g`. */
enum err_code model_read_rope_factors(const struct gguf *g, struct model_shape *m,
                                      struct err *e) BASE_NODISCARD;

/* One weight a model of this shape has. */
struct model_slot {
    const char *name;    /* "attn_q.weight" inside a layer, "output_norm.weight" outside */
    uint32_t rows, cols; /* y = W x with W [rows, cols]; a vector is [1, cols] */
    bool is_vector;      /* stored as plain f32, else packed */
};
/* Exactly the weights of one layer / outside the layers that the file has (optional ones only if
 * they are there); returns how many were written, <= MODEL_SLOTS_MAX. The order is the one of the
 * store. */
size_t model_layer_slots(const struct model_shape *m, struct model_slot out[MODEL_SLOTS_MAX]);
size_t model_global_slots(const struct model_shape *m, struct model_slot out[MODEL_SLOTS_MAX]);

/* Attention window of a layer, 0 = unlimited. */
uint32_t model_layer_window(const struct model_shape *m, uint32_t layer);

/* Angles of RoPE at position 1: `ret` [rope_dims / 2]; position p rotates pair i by p * ret[i]. cos
 * and sin are multiplied by *ret_scale (1 unless YaRN). Linear scaling, YaRN (arXiv 2309.00071,
 * section 3.2-3.4) and frequency factors (Llama 3) are in these numbers: callers need no further
 * case. */
void model_rope_angles(const struct model_shape *m, double *ret, double *ret_scale);

/* "blk.12.attn_q.weight" -> 12 and "attn_q.weight"; any other name -> -1 and the name itself. */
int32_t model_split_name(const char *name, const char **ret_slot);

#endif
