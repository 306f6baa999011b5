/* Small models of every supported shape with random weights, and a run of them at any execution
 * level: what the tests of ir/, opt/ and node/ compare. Tests only. */
#ifndef IR_MODEL_H
#define IR_MODEL_H

#include "rdu/ir/ir.h"

struct model_spec {
    enum rdu_numerics numerics;
    enum rdu_type matrix; /* element type of the layers' matrices */
    enum rdu_type head;   /* of the embedding, which is the head too */
    uint32_t width, heads, kv_heads, head_dim, rot, ffn, vocab, layers, context;
    enum rdu_rope rope;
    bool bias;      /* qwen2: q, k, v */
    bool qk_norm;   /* qwen3 */
    bool post_norm; /* gemma2, with gelu and scaled embeddings */
    bool windowed;  /* every other layer */
    float attn_softcap, softcap;
    bool parallel;           /* the MLP reads the layer's first norm: both residuals at the end */
    uint32_t chunk_rows;     /* 0 = matrices in one piece */
    uint32_t adapters, rank; /* of each of two token groups' adapters */
    enum rdu_kv_type kv;
    uint32_t page_tokens;
};
/* A llama of a few hundred weights; change what the test is about. */
struct model_spec model_spec_tiny(void);

struct rdu_graph *model_graph(const struct model_spec *s);

/* Weights, pages and arguments for a program of the spec. Everything follows from the seed. */
struct model {
    struct model_spec spec;
    struct rdu_weight *globals, *layers;
    uint32_t globals_count, layer_slots;
    struct rdu_delta *deltas; /* [adapters * 2][layers, slots] */
    const struct rdu_delta *delta_list[8];
    struct rdu_token_group groups[2];
    void ***pages; /* [2 sequences][pages] */
    uint32_t pages_count;
    size_t page_bytes;
    uint32_t *window;
    struct rng rng;
    struct arena memory; /* everything above */
};
void model_open(struct model *m, const struct model_spec *spec, const struct rdu_program *p,
                uint64_t seed);
void model_close(struct model *m);
void model_clear_kv(struct model *m); /* to NaN: nobody may read what was not appended */

/* One packed random matrix of any type; weights are about `scale`. Caller's arena. */
void *model_matrix(struct arena *a, struct rng *r, enum rdu_type type, uint32_t rows, uint32_t cols,
                   float scale);
float model_normal(struct rng *r);

/* Tokens for one step: n_tokens of two interleaved sequences from position `pos`. */
struct model_step {
    int32_t tokens[64];
    uint32_t pos[64], seq[64], outs[64];
    uint32_t n_tokens, n_outs;
};
void model_step_make(struct model *m, struct model_step *s, uint32_t n_tokens, uint32_t n_outs,
                     uint32_t pos);
/* Runs all stages; logits [n_outs, vocab] into `logits` (stride = vocab rounded up to 8). node
 * NULL: the interpreter. */
struct rdu_node;
void model_run(struct model *m, const struct rdu_program *p, const struct model_step *s,
               struct rdu_node *node, float *logits);

#endif
