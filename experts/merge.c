/* experts merge: one self-contained GGUF out of an expert. Matrices become Q8_0 of W + the sum of
 * scale * B A over its adapters, in f32; matrices that are Q8_0 already and have no delta keep
 * their bytes; vectors become F32. Metadata is the base's, but for name, file type and, if the
 * expert has one of its own, the chat template. */
#include "experts/gguf.h"
#include "experts/gguf_out.h"
#include "experts/set.h"

#include <stdlib.h>
#include <string.h>

#define FILE_TYPE_Q8_0 7u /* general.file_type "mostly Q8_0" */
#define BAND_BYTES ((size_t)2 << 20)

struct merging {
    struct memtier_store *store;
    const struct expert_record *rec;
    struct set_reader base;
    struct set_reader adapter[SET_ADAPTERS_MAX]; /* the expert's own first, then the one below */
    double scale[SET_ADAPTERS_MAX];
    unsigned adapters; /* 0 = a full model */
    struct gguf_out out;
    const struct progress *progress;
    struct err *e;
    struct buf header;
    uint8_t *raw, *packed; /* a band of rows: as stored, and as written */
    float *row;
    size_t band_bytes;
};

/* The two factors of one adapter's delta for one matrix, as f32. */
struct delta {
    float *a, *b;  /* [rank, cols], [rows, rank] */
    uint32_t rank; /* 0 = the adapter leaves the matrix alone */
    float scale;
};

static size_t row_bytes(enum rdu_type type, uint32_t cols)
{
    const struct rdu_type_info *ti = rdu_type_info(type);
    return (size_t)cols / ti->block_elems * ti->block_bytes;
}

/* ---- the header ---- */

/* Rows that Q8_0 blocks do not divide are rare (widths below 32): they stay F16. */
static enum rdu_type merged_type(const struct set_tensor *t)
{
    if (t->is_vector)
        return RDU_F32;
    return t->cols % rdu_type_info(RDU_Q8_0)->block_elems == 0 ? RDU_Q8_0 : RDU_F16;
}

static uint64_t merged_bytes(const struct set_tensor *t)
{
    return (uint64_t)t->rows * row_bytes(merged_type(t), t->cols);
}

static bool replaced_key(const struct merging *m, const struct gguf_kv *kv)
{
    static const char *const always[] = {"general.name", "general.file_type", "general.type",
                                         "general.quantization_version"};
    struct gguf_str key = {kv->key, kv->key_len};
    for (size_t i = 0; i < BASE_COUNT(always); i++)
        if (gguf_str_is(key, always[i]))
            return true;
    return m->rec->template_source && gguf_str_is(key, "tokenizer.chat_template");
}

static void make_header(struct merging *m)
{
    const struct set_meta *s = m->base.set;
    const struct gguf *g = s->gguf;
    const char *template = m->rec->template_source;
    uint64_t keys = 4 + (template != NULL), offset = 0;
    for (size_t i = 0; i < g->kv_count; i++)
        keys += !replaced_key(m, &g->kv[i]);
    gguf_put_start(&m->header, gguf_tensors(g), keys);
    gguf_put_kv_str(&m->header, "general.type", "model");
    gguf_put_kv_str(&m->header, "general.name", m->rec->name);
    gguf_put_kv_u32(&m->header, "general.file_type", FILE_TYPE_Q8_0);
    gguf_put_kv_u32(&m->header, "general.quantization_version", 2);
    if (template)
        gguf_put_kv_str(&m->header, "tokenizer.chat_template", template);
    for (size_t i = 0; i < g->kv_count; i++)
        if (!replaced_key(m, &g->kv[i]))
            gguf_put_kv(&m->header, &g->kv[i]);
    for (size_t i = 0; i < gguf_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        const struct set_tensor *st = set_find(s, t->name);
        gguf_put_tensor(&m->header, t, merged_type(st), offset);
        offset += (merged_bytes(st) + g->alignment - 1) & ~(g->alignment - 1);
    }
}

/* ---- deltas ---- */

static enum err_code read_matrix_f32(struct set_reader *from, const struct set_tensor *t,
                                     float **ret, struct err *e)
{
    size_t bytes = row_bytes(t->file_type, t->cols);
    uint8_t *raw = malloc(t->rows * bytes);
    float *out = raw ? malloc((size_t)t->rows * t->cols * sizeof(*out)) : NULL;
    enum err_code rc = out ? set_read_rows(from, t, 0, t->rows, raw, e)
                           : err_set(e, ERR_NO_MEMORY, "no memory for '%s'", t->name);
    for (uint32_t r = 0; r < t->rows && rc == ERR_OK; r++)
        rdu_dequant_row(t->file_type, raw + r * bytes, out + (size_t)r * t->cols, t->cols);
    free(raw);
    if (rc == ERR_OK)
        *ret = out;
    else
        free(out);
    return rc;
}

static enum err_code read_delta(struct merging *m, unsigned adapter, const struct set_tensor *t,
                                struct delta *d)
{
    struct set_reader *from = &m->adapter[adapter];
    const struct set_tensor *a, *b;
    float pair_scale;
    if (t->layer < 0 || !set_find_delta(from->set, t->layer, t->slot, &a, &b, &pair_scale))
        return ERR_OK;
    if (a->cols != t->cols || b->rows != t->rows || b->cols != a->rows)
        return err_set(m->e, ERR_CORRUPT, "%s: '%s' does not fit the base", from->object->name,
                       a->name);
    enum err_code rc = read_matrix_f32(from, a, &d->a, m->e);
    if (rc == ERR_OK)
        rc = read_matrix_f32(from, b, &d->b, m->e);
    d->rank = a->rows;
    d->scale = pair_scale * (float)m->scale[adapter];
    return rc;
}

static void add_delta(const struct delta *d, uint32_t row, uint32_t cols, float *y)
{
    for (uint32_t k = 0; k < d->rank; k++) {
        float f = d->scale * d->b[(size_t)row * d->rank + k];
        const float *a = d->a + (size_t)k * cols;
        for (uint32_t c = 0; c < cols; c++)
            y[c] += f * a[c];
    }
}

/* ---- tensors ---- */

struct matrix_job {
    const struct set_tensor *t;
    struct delta delta[SET_ADAPTERS_MAX];
    bool changed; /* by some adapter */
    enum rdu_type to;
    size_t in_bytes, out_bytes; /* of a row */
};

static enum err_code merge_band(struct merging *m, const struct matrix_job *j, uint32_t from,
                                uint32_t rows)
{
    enum err_code rc = set_read_rows(&m->base, j->t, from, rows, m->raw, m->e);
    if (rc != ERR_OK)
        return rc;
    if (!j->changed && j->t->file_type == j->to)
        return gguf_out_write(&m->out, m->raw, rows * j->out_bytes, m->e);
    for (uint32_t r = 0; r < rows && rc == ERR_OK; r++) {
        rdu_dequant_row(j->t->file_type, m->raw + r * j->in_bytes, m->row, j->t->cols);
        /* The bottom adapter first, as when serving. */
        for (unsigned k = m->adapters; k-- > 0;)
            add_delta(&j->delta[k], from + r, j->t->cols, m->row);
        rc = rdu_quantize_row(j->to, m->row, m->packed + r * j->out_bytes, j->t->cols, m->e);
    }
    if (rc != ERR_OK)
        return err_wrap(m->e, "tensor '%s'", j->t->name);
    return gguf_out_write(&m->out, m->packed, rows * j->out_bytes, m->e);
}

static enum err_code merge_matrix(struct merging *m, const struct set_tensor *t)
{
    struct matrix_job j = {.t = t, .to = merged_type(t)};
    enum err_code rc = ERR_OK;
    j.in_bytes = row_bytes(t->file_type, t->cols);
    j.out_bytes = row_bytes(j.to, t->cols);
    size_t widest = BASE_MAX(j.in_bytes, j.out_bytes);
    uint32_t band = (uint32_t)BASE_MAX(m->band_bytes / widest / RDU_GROUP, (size_t)1) * RDU_GROUP;
    for (unsigned k = 0; k < m->adapters && rc == ERR_OK; k++) {
        rc = read_delta(m, k, t, &j.delta[k]);
        j.changed = j.changed || j.delta[k].rank > 0;
    }
    for (uint32_t row = 0; row < t->rows && rc == ERR_OK; row += band)
        rc = merge_band(m, &j, row, BASE_MIN(band, t->rows - row));
    for (unsigned k = 0; k < m->adapters; k++) {
        free(j.delta[k].a);
        free(j.delta[k].b);
    }
    return rc;
}

static enum err_code merge_vector(struct merging *m, const struct set_tensor *t)
{
    enum err_code rc = set_read_rows(&m->base, t, 0, 1, m->raw, m->e);
    if (rc != ERR_OK)
        return rc;
    rdu_dequant_row(t->file_type, m->raw, m->row, t->cols);
    return gguf_out_write(&m->out, m->row, t->cols * sizeof(float), m->e);
}

static enum err_code merge_tensors(struct merging *m)
{
    const struct gguf *g = m->base.set->gguf;
    uint64_t total = 0, offset = m->out.data_start;
    for (size_t i = 0; i < gguf_tensors(g); i++)
        total += merged_bytes(set_find(m->base.set, gguf_tensor_at(g, i)->name));
    char *what = mem_format("writing %s", m->out.path);
    enum err_code rc = ERR_OK;
    for (size_t i = 0; i < gguf_tensors(g) && rc == ERR_OK; i++) {
        const struct set_tensor *t = set_find(m->base.set, gguf_tensor_at(g, i)->name);
        rc = t->is_vector ? merge_vector(m, t) : merge_matrix(m, t);
        offset += (merged_bytes(t) + g->alignment - 1) & ~(g->alignment - 1);
        if (rc == ERR_OK)
            rc = gguf_out_pad(&m->out, offset, m->e);
        if (rc == ERR_OK &&
            !progress_report(m->progress, what, m->out.at - m->out.data_start, total))
            rc = err_set(m->e, ERR_CANCELLED, "merge cancelled; '%.200s' was not written",
                         m->out.path);
    }
    free(what);
    return rc;
}

static enum err_code take_memory(struct merging *m)
{
    size_t cols = 1;
    for (size_t i = 0; i < m->base.set->tensors_count; i++)
        cols = BASE_MAX(cols, (size_t)m->base.set->tensors[i].cols);
    /* A band is at least one group of rows of any type, f32 being the widest. */
    m->band_bytes = BASE_MAX(BAND_BYTES, cols * sizeof(float) * RDU_GROUP);
    m->raw = malloc(m->band_bytes);
    m->packed = malloc(m->band_bytes);
    m->row = malloc(cols * sizeof(float));
    if (!m->raw || !m->packed || !m->row)
        return err_set(m->e, ERR_NO_MEMORY, "no memory for rows of %zu numbers", cols);
    return ERR_OK;
}

/* Readers of the expert's adapter and of all adapters below it. */
static enum err_code open_adapters(struct merging *m)
{
    struct expert_record *below = NULL;
    const struct expert_record *r = m->rec;
    enum err_code rc = ERR_OK;
    while (rc == ERR_OK && r->adapter_set) {
        struct expert_record *next = NULL;
        if (m->adapters == SET_ADAPTERS_MAX)
            rc = err_set(m->e, ERR_UNSUPPORTED, "expert '%s' has more than %d adapters",
                         m->rec->name, SET_ADAPTERS_MAX);
        if (rc == ERR_OK)
            rc = set_reader_init(&m->adapter[m->adapters], m->store, r->adapter_set, m->e);
        if (rc != ERR_OK)
            break;
        m->scale[m->adapters++] = r->scale;
        rc = expert_record_find(m->store, r->base, &next, m->e);
        expert_record_close(&below);
        r = below = next;
    }
    expert_record_close(&below);
    return rc;
}

static enum err_code merge(struct merging *m, const char *path)
{
    enum err_code rc = set_reader_init(&m->base, m->store, m->rec->set, m->e);
    if (rc == ERR_OK)
        rc = open_adapters(m);
    if (rc == ERR_OK)
        rc = take_memory(m);
    if (rc != ERR_OK)
        return rc;
    make_header(m);
    rc = gguf_out_open(&m->out, path, m->e);
    if (rc == ERR_OK)
        rc = gguf_out_header(&m->out, m->header.data, m->header.len, m->base.set->gguf->alignment,
                             m->e);
    if (rc == ERR_OK)
        rc = merge_tensors(m);
    return rc == ERR_OK ? gguf_out_commit(&m->out, m->e) : rc;
}

enum err_code experts_merge(struct memtier_store *store, const char *name, const char *out_path,
                            const struct progress *progress, struct err *e)
{
    struct err local;
    struct expert_record *rec = NULL;
    struct merging m = {.store = store, .progress = progress, .e = e ? e : &local};
    enum err_code rc = expert_record_find(store, name, &rec, m.e);
    if (rc != ERR_OK)
        return rc;
    m.rec = rec;
    rc = merge(&m, out_path);
    gguf_out_abort(&m.out);
    buf_done(&m.header);
    free(m.raw);
    free(m.packed);
    free(m.row);
    for (unsigned k = 0; k < m.adapters; k++)
        set_reader_done(&m.adapter[k]);
    set_reader_done(&m.base);
    expert_record_close(&rec);
    return rc;
}
