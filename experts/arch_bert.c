/* BERT-class sentence encoders as one IR graph: learned positions, attention that sees the whole
 * sequence, norms after each half of a layer, GELU, and a head that pools a sequence into one
 * vector of length 1. There is no cache to keep: K and V live in pages only while a batch runs. */
#include <math.h>

#include "experts/encoder.h"

static uint32_t linear(struct rdu_graph *g, uint32_t x, const char *weight, const char *bias,
                       uint32_t rows, uint32_t cols)
{
    return rdu_add_bias(g, rdu_matmul(g, x, rdu_slot(g, weight, rows, cols)),
                        rdu_slot(g, bias, 1, rows));
}

static uint32_t norm(struct rdu_graph *g, const struct encoder_shape *m, uint32_t x,
                     const char *weight, const char *bias)
{
    return rdu_layer_norm(g, x, rdu_slot(g, weight, 1, m->width), rdu_slot(g, bias, 1, m->width),
                          m->norm_eps);
}

static void embed_section(struct rdu_graph *g, const struct encoder_shape *m)
{
    uint32_t tokens = rdu_graph_begin(g, RDU_SECTION_EMBED, m->width);
    uint32_t x = rdu_embed(g, tokens, rdu_slot(g, "token_embd.weight", m->vocab, m->width));
    uint32_t pos = rdu_embed_pos(g, rdu_slot(g, "position_embd.weight", m->context, m->width));
    x = rdu_add(g, x, pos);
    /* One text at a time: every token is of the first type. */
    x = rdu_add_bias(g, x, rdu_slot(g, "token_types.weight", 1, m->width));
    rdu_graph_end(g, norm(g, m, x, "token_embd_norm.weight", "token_embd_norm.bias"));
}

static void layer_section(struct rdu_graph *g, const struct encoder_shape *m)
{
    uint32_t w = m->width, x = rdu_graph_begin(g, RDU_SECTION_LAYER, w);
    uint32_t q = linear(g, x, "attn_q.weight", "attn_q.bias", w, w);
    uint32_t k = linear(g, x, "attn_k.weight", "attn_k.bias", w, w);
    uint32_t v = linear(g, x, "attn_v.weight", "attn_v.bias", w, w);
    uint32_t head_dim = w / m->heads;
    const struct rdu_attention_options attention = {.heads = m->heads,
                                                    .kv_heads = m->heads,
                                                    .head_dim = head_dim,
                                                    .scale = 1.0f / sqrtf((float)head_dim),
                                                    .bidirectional = true};
    uint32_t h = rdu_attention(g, q, k, v, &attention);
    h = linear(g, h, "attn_output.weight", "attn_output.bias", w, w);
    x = norm(g, m, rdu_add(g, x, h), "attn_output_norm.weight", "attn_output_norm.bias");
    h = rdu_gelu(g, linear(g, x, "ffn_up.weight", "ffn_up.bias", m->ffn, w));
    h = linear(g, h, "ffn_down.weight", "ffn_down.bias", w, m->ffn);
    rdu_graph_end(
        g, norm(g, m, rdu_add(g, x, h), "layer_output_norm.weight", "layer_output_norm.bias"));
}

static void head_section(struct rdu_graph *g, const struct encoder_shape *m)
{
    uint32_t x = rdu_graph_begin(g, RDU_SECTION_HEAD, m->width);
    x = m->pooling == ENCODER_POOL_MEAN ? rdu_mean_pool(g, x) : rdu_take_outs(g, x);
    /* x / |x| = x / rms(x) / sqrt(width). */
    rdu_graph_end(g, rdu_rms_norm(g, x, rdu_slot(g, "pool_norm.weight", 1, m->width), 1e-24f, 1));
}

enum err_code arch_build_bert(const struct encoder_shape *m, enum rdu_numerics numerics,
                              struct rdu_graph **ret, struct err *e)
{
    struct rdu_graph *g = rdu_graph_open("bert", numerics);
    if (g == NULL)
        return err_set(e, ERR_INTERNAL, "cannot open a graph");
    embed_section(g, m);
    layer_section(g, m);
    head_section(g, m);
    *ret = g;
    return ERR_OK;
}
