/* Architectures as IR graphs. llama, qwen2, qwen3 and gemma2 are one decoder whose parts a shape switches
 * on (biases, q/k norms, post-norms, soft caps, windows, GELU): model.c decides which, this file says how
 * they join. A new decoder family usually needs a line in each; an encoder gets a file of its own. */
#include <math.h>
#include <stdlib.h>

#include "experts/serve.h"

/* cos and sin of every position, made once per program: [context, rope_dims / 2]. The angles are computed
 * in double, as position * base^(-2i/n) in float loses whole radians at long contexts. */
static void rope_tables(struct rdu_graph *g, const struct model_shape *m, uint32_t *ret_cos,
                        uint32_t *ret_sin)
{
    uint32_t half = m->rope_dims / 2;
    double angle[MODEL_ROPE_DIMS_MAX / 2], scale;
    float *c = mem_array((size_t)m->context * half, sizeof(float));
    float *s = mem_array((size_t)m->context * half, sizeof(float));
    model_rope_angles(m, angle, &scale);
    for (uint32_t p = 0; p < m->context; p++)
        for (uint32_t i = 0; i < half; i++) {
            c[(size_t)p * half + i] = (float)(cos(p * angle[i]) * scale);
            s[(size_t)p * half + i] = (float)(sin(p * angle[i]) * scale);
        }
    *ret_cos = rdu_const(g, "rope_cos", c, m->context, half);
    *ret_sin = rdu_const(g, "rope_sin", s, m->context, half);
    free(c);
    free(s);
}

static uint32_t projection(struct rdu_graph *g, const struct model_shape *m, uint32_t x, const char *weight,
                           const char *bias, uint32_t rows)
{
    uint32_t y = rdu_matmul(g, x, rdu_slot(g, weight, rows, m->width));
    return bias ? rdu_add_bias(g, y, rdu_slot(g, bias, 1, rows)) : y;
}

static uint32_t attention(struct rdu_graph *g, const struct model_shape *m, uint32_t x, uint32_t cos_table,
                          uint32_t sin_table)
{
    uint32_t q_rows = m->heads * m->head_dim, kv_rows = m->kv_heads * m->head_dim;
    bool bias = m->qkv_bias;
    uint32_t q = projection(g, m, x, "attn_q.weight", bias ? "attn_q.bias" : NULL, q_rows);
    uint32_t k = projection(g, m, x, "attn_k.weight", bias ? "attn_k.bias" : NULL, kv_rows);
    uint32_t v = projection(g, m, x, "attn_v.weight", bias ? "attn_v.bias" : NULL, kv_rows);
    if (m->qk_norm) {
        q = rdu_rms_norm(g, q, rdu_slot(g, "attn_q_norm.weight", 1, m->head_dim), m->rms_eps, m->heads);
        k = rdu_rms_norm(g, k, rdu_slot(g, "attn_k_norm.weight", 1, m->head_dim), m->rms_eps, m->kv_heads);
    }
    q = rdu_rope(g, q, cos_table, sin_table, m->heads, m->head_dim, m->rope_dims, m->rope_style);
    k = rdu_rope(g, k, cos_table, sin_table, m->kv_heads, m->head_dim, m->rope_dims, m->rope_style);
    struct rdu_attention_options opt = {.heads = m->heads, .kv_heads = m->kv_heads,
                                        .head_dim = m->head_dim, .scale = m->attn_scale,
                                        .softcap = m->attn_softcap, .windowed = m->window > 0};
    uint32_t o = rdu_attention(g, q, k, v, &opt);
    o = rdu_matmul(g, o, rdu_slot(g, "attn_output.weight", m->width, q_rows));
    return m->out_bias ? rdu_add_bias(g, o, rdu_slot(g, "attn_output.bias", 1, m->width)) : o;
}

static uint32_t mlp(struct rdu_graph *g, const struct model_shape *m, uint32_t x)
{
    uint32_t gate = rdu_matmul(g, x, rdu_slot(g, "ffn_gate.weight", m->ffn, m->width));
    uint32_t up = rdu_matmul(g, x, rdu_slot(g, "ffn_up.weight", m->ffn, m->width));
    uint32_t h = m->gelu ? rdu_gelu_mul(g, gate, up) : rdu_silu_mul(g, gate, up);
    return rdu_matmul(g, h, rdu_slot(g, "ffn_down.weight", m->width, m->ffn));
}

static uint32_t norm(struct rdu_graph *g, const struct model_shape *m, uint32_t x, const char *weight)
{
    return rdu_rms_norm(g, x, rdu_slot(g, weight, 1, m->width), m->rms_eps, 1);
}

static void layer_section(struct rdu_graph *g, const struct model_shape *m, uint32_t cos_table,
                          uint32_t sin_table)
{
    uint32_t x = rdu_graph_begin(g, RDU_SECTION_LAYER, m->width);
    uint32_t h = attention(g, m, norm(g, m, x, "attn_norm.weight"), cos_table, sin_table);
    if (m->post_norms)
        h = norm(g, m, h, "post_attention_norm.weight");
    x = rdu_add(g, x, h);
    h = mlp(g, m, norm(g, m, x, "ffn_norm.weight"));
    if (m->post_norms)
        h = norm(g, m, h, "post_ffw_norm.weight");
    rdu_graph_end(g, rdu_add(g, x, h));
}

enum err_code arch_build(const struct model_shape *m, enum rdu_numerics numerics, struct rdu_graph **ret,
                         struct err *e)
{
    struct rdu_graph *g = rdu_graph_open(model_arch_name(m->arch), numerics);
    if (g == NULL)
        return err_set(e, ERR_INTERNAL, "cannot open a graph");
    uint32_t cos_table, sin_table;
    rope_tables(g, m, &cos_table, &sin_table);

    uint32_t tokens = rdu_graph_begin(g, RDU_SECTION_EMBED, m->width);
    uint32_t x = rdu_embed(g, tokens, rdu_slot(g, "token_embd.weight", m->vocab, m->width));
    if (m->embed_scale != 1.0f)
        x = rdu_scale(g, x, m->embed_scale);
    rdu_graph_end(g, x);

    layer_section(g, m, cos_table, sin_table);

    x = rdu_graph_begin(g, RDU_SECTION_HEAD, m->width);
    x = norm(g, m, rdu_take_outs(g, x), "output_norm.weight");
    const char *head = m->tied_head ? "token_embd.weight" : "output.weight";
    x = rdu_matmul(g, x, rdu_slot(g, head, m->vocab, m->width));
    if (m->logit_softcap > 0)
        x = rdu_softcap(g, x, m->logit_softcap);
    rdu_graph_end(g, x);
    *ret = g;
    return ERR_OK;
}
