/* What a sentence encoder is: shape, where its weights come from, the graph. Private to experts/
 * and its tests; the public part is in experts.h. */
#ifndef SWITCHYARD_EXPERTS_ENCODER_H
#define SWITCHYARD_EXPERTS_ENCODER_H

#include "experts/experts.h"
#include "experts/safetensors.h"

#define ENCODER_LAYERS_MAX 64
#define ENCODER_WIDTH_MAX 8192
#define ENCODER_CONTEXT_MAX 8192

enum encoder_pooling { ENCODER_POOL_MEAN, ENCODER_POOL_FIRST };

struct encoder_shape {
    uint32_t layers, width, heads, ffn, vocab, context;
    float norm_eps;
    enum encoder_pooling pooling;
};

/* arch_bert.c: the program of a shape (Devlin et al. 2018, arXiv 1810.04805). Slots are GGUF's
 * names of the bert architecture, and "pool_norm.weight", 1/sqrt(width) throughout, which makes an
 * RMS norm the division by the length. */
enum err_code arch_build_bert(const struct encoder_shape *m, enum rdu_numerics numerics,
                              struct rdu_graph **ret, struct err *e) BASE_NODISCARD;

/* encoder_source.c: a folder in Hugging Face's layout, or a GGUF file. */
struct encoder_source {
    struct encoder_shape shape;
    struct gguf *vocab; /* what the tokenizer opens; of a GGUF file the file itself */
    bool is_gguf;
    struct safetensors *tensors; /* of a folder */
    const char *prefix;          /* of its tensor names, "" or "bert." */
    char *path;
    uint32_t tokens_max; /* the model's own limit on a text, <= context */
};
enum err_code encoder_source_open(const char *path, struct encoder_source *ret,
                                  struct err *e) BASE_NODISCARD;
void encoder_source_close(struct encoder_source *s);
/* The weight behind a slot of the graph as f32 [rows, cols]; `layer` -1 outside the layers. */
enum err_code encoder_source_read(const struct encoder_source *s, const char *slot, int layer,
                                  uint32_t rows, uint32_t cols, float *dst,
                                  struct err *e) BASE_NODISCARD;

#endif
