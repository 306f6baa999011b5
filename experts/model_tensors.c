/* Which weights a model has: the one list that import, export, merge, adapters and serving go by,
 * and its comparison with the tensor table of a file. A tensor nobody would use is refused: running
 * a model without one of its biases gives fluent nonsense. */
#include "experts/gguf.h"
#include "experts/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct slot_list {
    struct model_slot *out;
    size_t count;
};

static void add_matrix(struct slot_list *l, const char *name, uint32_t rows, uint32_t cols)
{
    l->out[l->count++] = (struct model_slot){name, rows, cols, false};
}

static void add_vector(struct slot_list *l, bool present, const char *name, uint32_t cols)
{
    if (present)
        l->out[l->count++] = (struct model_slot){name, 1, cols, true};
}

size_t model_layer_slots(const struct model_shape *m, struct model_slot out[MODEL_SLOTS_MAX])
{
    struct slot_list l = {out, 0};
    uint32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    add_vector(&l, true, "attn_norm.weight", m->width);
    add_matrix(&l, "attn_q.weight", q, m->width);
    add_vector(&l, m->qkv_bias, "attn_q.bias", q);
    add_matrix(&l, "attn_k.weight", kv, m->width);
    add_vector(&l, m->qkv_bias, "attn_k.bias", kv);
    add_matrix(&l, "attn_v.weight", kv, m->width);
    add_vector(&l, m->qkv_bias, "attn_v.bias", kv);
    add_vector(&l, m->qk_norm, "attn_q_norm.weight", m->head_dim);
    add_vector(&l, m->qk_norm, "attn_k_norm.weight", m->head_dim);
    add_matrix(&l, "attn_output.weight", m->width, q);
    add_vector(&l, m->out_bias, "attn_output.bias", m->width);
    add_vector(&l, m->post_norms, "post_attention_norm.weight", m->width);
    add_vector(&l, true, "ffn_norm.weight", m->width);
    add_matrix(&l, "ffn_gate.weight", m->ffn, m->width);
    add_matrix(&l, "ffn_up.weight", m->ffn, m->width);
    add_matrix(&l, "ffn_down.weight", m->width, m->ffn);
    add_vector(&l, m->post_norms, "post_ffw_norm.weight", m->width);
    return l.count;
}

size_t model_global_slots(const struct model_shape *m, struct model_slot out[MODEL_SLOTS_MAX])
{
    struct slot_list l = {out, 0};
    add_matrix(&l, "token_embd.weight", m->vocab, m->width);
    add_vector(&l, true, "output_norm.weight", m->width);
    add_vector(&l, m->rope_factors_count > 0, "rope_freqs.weight", m->rope_factors_count);
    if (!m->tied_head)
        add_matrix(&l, "output.weight", m->vocab, m->width);
    return l.count;
}

int32_t model_split_name(const char *name, const char **ret_slot)
{
    *ret_slot = name;
    if (strncmp(name, "blk.", 4) != 0)
        return -1;
    const char *p = name + 4;
    int32_t layer = 0;
    unsigned digits = 0;
    for (; *p >= '0' && *p <= '9' && digits < 5; p++, digits++)
        layer = layer * 10 + (*p - '0');
    /* "blk.03." would be a second name for layer 3. */
    if (digits == 0 || digits == 5 || *p != '.' || (digits > 1 && name[4] == '0') || !p[1])
        return -1;
    *ret_slot = p + 1;
    return layer;
}

uint32_t model_layer_window(const struct model_shape *m, uint32_t layer)
{
    if (m->window == 0 || m->window_pattern == 0)
        return m->window;
    return layer % m->window_pattern < m->window_pattern - 1 ? m->window : 0;
}

static enum err_code check_tensor(const struct gguf *g, const char *name,
                                  const struct model_slot *slot, struct err *e)
{
    const struct gguf_tensor *t = gguf_find_tensor(g, name);
    if (!t)
        return err_set(e, ERR_CORRUPT, "%s: tensor '%s' is missing", g->label, name);
    if (t->dim[0] != slot->cols || t->dim[1] != slot->rows || t->dim[2] != 1 || t->dim[3] != 1)
        return err_set(e, ERR_CORRUPT,
                       "%s: tensor '%s' is [%llu, %llu]; the metadata asks for [%u, %u]", g->label,
                       name, (unsigned long long)t->dim[0], (unsigned long long)t->dim[1],
                       slot->cols, slot->rows);
    if (slot->is_vector && !rdu_type_info(t->type)->is_float)
        return err_set(e, ERR_CORRUPT,
                       "%s: tensor '%s' is a vector of type %s; F32, F16 and BF16 are "
                       "allowed",
                       g->label, name, rdu_type_info(t->type)->name);
    return ERR_OK;
}

static bool is_slot(const struct model_slot *slots, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(slots[i].name, name) == 0)
            return true;
    return false;
}

enum err_code model_check_tensors(const struct gguf *g, const struct model_shape *m, struct err *e)
{
    struct model_slot global[MODEL_SLOTS_MAX], layer[MODEL_SLOTS_MAX];
    size_t globals = model_global_slots(m, global), slots = model_layer_slots(m, layer);
    enum err_code rc = ERR_OK;
    for (size_t i = 0; i < globals && rc == ERR_OK; i++)
        rc = check_tensor(g, global[i].name, &global[i], e);
    for (uint32_t n = 0; n < m->layers && rc == ERR_OK; n++) {
        for (size_t i = 0; i < slots && rc == ERR_OK; i++) {
            char name[128];
            snprintf(name, sizeof(name), "blk.%u.%s", n, layer[i].name);
            rc = check_tensor(g, name, &layer[i], e);
        }
    }
    for (size_t i = 0; i < gguf_tensors(g) && rc == ERR_OK; i++) {
        const char *name = gguf_tensor_at(g, i)->name, *slot;
        int32_t n = model_split_name(name, &slot);
        bool known = n < 0 ? is_slot(global, globals, name)
                           : n < (int32_t)m->layers && is_slot(layer, slots, slot);
        char shown[96];
        if (!known)
            rc = err_set(e, ERR_UNSUPPORTED,
                         "%s: tensor '%s' has no use in a %s model of %u layers", g->label,
                         gguf_show(name, strlen(name), shown), model_arch_name(m->arch), m->layers);
    }
    return rc;
}

enum err_code model_read_rope_factors(const struct gguf *g, struct model_shape *m, struct err *e)
{
    const struct gguf_tensor *t = gguf_find_tensor(g, "rope_freqs.weight");
    if (!t || t->dim[0] != m->rope_factors_count)
        return err_set(e, ERR_INTERNAL, "%s: rope_freqs.weight was not checked", g->label);
    void *raw = mem_alloc((size_t)t->bytes);
    enum err_code rc = gguf_read_tensor(g, t, raw, e);
    if (rc == ERR_OK)
        rdu_dequant_row(t->type, raw, m->rope_factors, m->rope_factors_count);
    free(raw);
    for (uint32_t i = 0; i < m->rope_factors_count && rc == ERR_OK; i++)
        if (!(m->rope_factors[i] > 0.0F) || !isfinite(m->rope_factors[i]))
            rc = err_set(e, ERR_CORRUPT, "%s: rope_freqs.weight: factor %u is %g", g->label, i,
                         (double)m->rope_factors[i]);
    return rc;
}

/* ---- RoPE ---- */

/* YaRN: index of the pair that turns `turns` times within the original context (section 3.2). */
static double yarn_index(const struct model_shape *m, double turns)
{
    return m->rope_dims * log(m->rope_original_context / (turns * 2.0 * M_PI)) /
           (2.0 * log(m->rope_base));
}

void model_rope_angles(const struct model_shape *m, double *ret, double *ret_scale)
{
    uint32_t pairs = m->rope_dims / 2;
    bool yarn = m->rope_scaling == MODEL_ROPE_YARN;
    double low = 0, high = 0;
    if (yarn) {
        low = fmax(0.0, floor(yarn_index(m, m->yarn_beta_fast)));
        high = fmin(m->rope_dims - 1.0, ceil(yarn_index(m, m->yarn_beta_slow)));
    }
    for (uint32_t i = 0; i < pairs; i++) {
        double angle = pow(m->rope_base, -2.0 * i / m->rope_dims);
        if (m->rope_factors_count)
            angle /= (double)m->rope_factors[i];
        if (m->rope_scaling == MODEL_ROPE_LINEAR)
            angle /= m->rope_factor;
        if (yarn) {
            /* Fast pairs keep their angle, slow ones are interpolated, a ramp lies between. */
            double ramp = fmin(1.0, fmax(0.0, (i - low) / fmax(0.001, high - low)));
            angle = angle * (1.0 - ramp) + angle / m->rope_factor * ramp;
        }
        ret[i] = angle;
    }
    *ret_scale = yarn ? m->rope_attn_factor * (1.0 + 0.1 * log(m->rope_factor)) : 1.0;
}
