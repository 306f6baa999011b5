/* The description of a weight set in the store: one line of JSON with the table of tensors, then
 * the verbatim GGUF header. Written at import, read when experts are opened, exported and merged.
 */
#include "experts/gguf.h"
#include "experts/set.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SET_VERSION 1

/* Names to tensors: open addressing, index + 1. */
struct set_index {
    size_t mask;
    uint32_t slot[];
};

void set_index(struct set_meta *s)
{
    size_t cap = 8;
    while (cap < s->tensors_count * 2)
        cap *= 2;
    struct set_index *x = mem_alloc(sizeof(*x) + cap * sizeof(x->slot[0]));
    x->mask = cap - 1;
    for (size_t i = 0; i < s->tensors_count; i++) {
        const char *name = s->tensors[i].name;
        size_t at = (size_t)hash64_of(name, strlen(name), 0) & x->mask;
        while (x->slot[at])
            at = (at + 1) & x->mask;
        x->slot[at] = (uint32_t)i + 1;
    }
    free(s->index);
    s->index = x;
}

const struct set_tensor *set_find(const struct set_meta *s, const char *name)
{
    const struct set_index *x = s->index;
    size_t at = (size_t)hash64_of(name, strlen(name), 0) & x->mask;
    for (; x->slot[at]; at = (at + 1) & x->mask)
        if (strcmp(s->tensors[x->slot[at] - 1].name, name) == 0)
            return &s->tensors[x->slot[at] - 1];
    return NULL;
}

const struct set_tensor *set_find_slot(const struct set_meta *s, int32_t layer, const char *slot)
{
    char name[GGUF_NAME_BYTES_MAX + 32];
    if (layer < 0)
        return set_find(s, slot);
    snprintf(name, sizeof(name), "blk.%d.%s", layer, slot);
    return set_find(s, name);
}

bool set_find_delta(const struct set_meta *s, int32_t layer, const char *slot,
                    const struct set_tensor **ret_a, const struct set_tensor **ret_b,
                    float *ret_scale)
{
    char name[GGUF_NAME_BYTES_MAX + 1];
    snprintf(name, sizeof(name), "%s.lora_a", slot);
    const struct set_tensor *a = set_find_slot(s, layer, name);
    snprintf(name, sizeof(name), "%s.lora_b", slot);
    const struct set_tensor *b = set_find_slot(s, layer, name);
    if (!a || !b)
        return false;
    *ret_a = a;
    *ret_b = b;
    *ret_scale = s->adapter_alpha > 0 ? (float)(s->adapter_alpha / a->rows) : 1.0F;
    return true;
}

void set_close(struct set_meta **sp)
{
    struct set_meta *s = *sp;
    if (!s)
        return;
    gguf_close(&s->gguf);
    free(s->tensors);
    free(s->segment_bytes);
    free(s->segment_kind);
    free(s->index);
    free(s);
    *sp = NULL;
}

/* ---- writing ---- */

static json_t *tensor_json(const struct set_tensor *t)
{
    json_t *j = json_object();
    json_object_set_new(j, "name", json_string(t->name));
    json_object_set_new(j, "type", json_string(rdu_type_info(t->type)->name));
    if (t->is_vector)
        json_object_set_new(j, "vector", json_true());
    json_object_set_new(j, "rows", json_integer(t->rows));
    json_object_set_new(j, "cols", json_integer(t->cols));
    json_object_set_new(j, "segment", json_integer(t->segment));
    json_object_set_new(j, "offset", json_integer((json_int_t)t->offset));
    if (t->run_rows)
        json_object_set_new(j, "run_rows", json_integer(t->run_rows));
    return j;
}

enum err_code set_format(const struct set_meta *s, struct buf *ret, struct err *e)
{
    size_t header_len;
    const void *header = gguf_header(s->gguf, &header_len);
    json_t *j = json_object(), *list = json_array();
    json_object_set_new(j, "version", json_integer(SET_VERSION));
    json_object_set_new(j, "kind", json_string(s->is_adapter ? "adapter" : "model"));
    json_object_set_new(j, "header_bytes", json_integer((json_int_t)header_len));
    if (s->shape.rope_factors_count && !s->is_adapter) {
        json_t *f = json_array();
        for (uint32_t i = 0; i < s->shape.rope_factors_count; i++)
            json_array_append_new(f, json_real((double)s->shape.rope_factors[i]));
        json_object_set_new(j, "rope_factors", f);
    }
    for (size_t i = 0; i < s->tensors_count; i++)
        json_array_append_new(list, tensor_json(&s->tensors[i]));
    json_object_set_new(j, "tensors", list);
    char *text = json_dumps(j, JSON_COMPACT);
    json_decref(j);
    if (!text)
        return err_set(e, ERR_UNSUPPORTED, "%s: a tensor name is not UTF-8", s->gguf->label);
    buf_puts(ret, text);
    buf_append(ret, "\n", 1);
    buf_append(ret, header, header_len);
    free(text);
    return ERR_OK;
}

/* ---- reading ---- */

struct parse {
    const struct memtier_object *o;
    struct set_meta *s;
    json_t *json;
    struct err *e;
};

static enum err_code bad(const struct parse *p, const char *fmt, ...) BASE_PRINTF(2, 3);
static enum err_code bad(const struct parse *p, const char *fmt, ...)
{
    char msg[300];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof(msg), fmt, ap);
    va_end(ap);
    return err_set(p->e, ERR_CORRUPT, "store object %s: %s", p->o->name, msg);
}

/* An integer field from 0 to max; false if it is missing and required, or out of range. */
static bool field(const json_t *j, const char *key, uint64_t max, bool required, uint64_t *ret)
{
    const json_t *v = json_object_get(j, key);
    *ret = 0;
    if (!v)
        return !required;
    if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) > max)
        return false;
    *ret = (uint64_t)json_integer_value(v);
    return true;
}

static bool type_by_name(const char *name, enum rdu_type *ret)
{
    for (unsigned i = 0; name && i < RDU_TYPES; i++) {
        if (strcmp(rdu_type_info((enum rdu_type)i)->name, name) == 0) {
            *ret = (enum rdu_type)i;
            return true;
        }
    }
    return false;
}

/* Runs must be the whole of their segments, anything else must lie inside its one. */
static bool fits_segments(const struct parse *p, const struct set_tensor *t)
{
    for (uint32_t i = 0; i < t->runs; i++) {
        uint64_t room = p->o->segments[t->segment + i].bytes;
        if (!t->run_rows)
            return t->offset % SET_ALIGN == 0 && t->offset <= room && t->bytes <= room - t->offset;
        uint32_t rows = BASE_MIN(t->run_rows, t->rows - i * t->run_rows);
        if (rdu_pack_bytes(t->type, rows, t->cols) != room)
            return false;
    }
    return true;
}

static enum err_code parse_tensor(struct parse *p, const json_t *j, struct set_tensor *t)
{
    const char *name = json_string_value(json_object_get(j, "name"));
    const struct gguf_tensor *gt = name ? gguf_find_tensor(p->s->gguf, name) : NULL;
    uint64_t rows, cols, segment, offset, run_rows;
    if (!gt)
        return bad(p, "tensor '%s' is not in the kept header", name ? name : "?");
    if (!type_by_name(json_string_value(json_object_get(j, "type")), &t->type) ||
        !field(j, "rows", UINT32_MAX, true, &rows) || !field(j, "cols", UINT32_MAX, true, &cols) ||
        !field(j, "segment", UINT32_MAX, true, &segment) ||
        !field(j, "offset", INT64_MAX, true, &offset) ||
        !field(j, "run_rows", UINT32_MAX - RDU_GROUP, false, &run_rows))
        return bad(p, "the record of tensor '%s' is damaged", name);
    t->name = gt->name;
    t->layer = model_split_name(t->name, &t->slot);
    t->file_type = gt->type;
    t->is_vector = json_is_true(json_object_get(j, "vector"));
    t->rows = (uint32_t)rows;
    t->cols = (uint32_t)cols;
    t->segment = (uint32_t)segment;
    t->offset = offset;
    t->run_rows = (uint32_t)run_rows;
    t->runs = run_rows ? (uint32_t)((rows + run_rows - 1) / run_rows) : 1;
    t->bytes = t->is_vector ? cols * sizeof(float) : rdu_pack_bytes(t->type, t->rows, t->cols);
    if (rows != gt->dim[1] || cols != gt->dim[0] ||
        t->type != (t->is_vector ? RDU_F32 : gt->type) || (t->is_vector && rows != 1))
        return bad(p, "tensor '%s' differs from the kept header", name);
    if (t->bytes == 0 || run_rows % RDU_GROUP != 0 || (run_rows && offset) ||
        segment >= p->o->segments_count || t->runs > p->o->segments_count - segment ||
        !fits_segments(p, t))
        return bad(p, "tensor '%s' does not fit its segments", name);
    return ERR_OK;
}

static enum err_code parse_tensors(struct parse *p)
{
    const json_t *list = json_object_get(p->json, "tensors");
    size_t n = json_array_size(list);
    if (n == 0 || n != gguf_tensors(p->s->gguf))
        return bad(p, "%zu tensors, the kept header has %zu", n, gguf_tensors(p->s->gguf));
    p->s->tensors = mem_array(n, sizeof(*p->s->tensors));
    enum err_code rc = ERR_OK;
    for (size_t i = 0; i < n && rc == ERR_OK; i++) {
        rc = parse_tensor(p, json_array_get(list, i), &p->s->tensors[i]);
        p->s->tensors_count = i + 1;
    }
    if (rc != ERR_OK)
        return rc;
    set_index(p->s);
    /* As many records as the header has tensors, and each found by its name: no name may come
     * twice. */
    for (size_t i = 0; i < n; i++)
        if (set_find(p->s, p->s->tensors[i].name) != &p->s->tensors[i])
            return bad(p, "tensor '%s' is described twice", p->s->tensors[i].name);
    return ERR_OK;
}

/* The places that serving counts with, from the table. */
static enum err_code place_model(struct parse *p)
{
    struct set_meta *s = p->s;
    const struct set_tensor *embd = set_find(s, "token_embd.weight");
    const struct set_tensor *head =
        set_find(s, s->shape.tied_head ? "token_embd.weight" : "output.weight");
    const struct set_tensor *norm = set_find(s, "output_norm.weight");
    const struct set_tensor *first = set_find(s, "blk.0.attn_norm.weight");
    if (!embd || !head || !norm || !first || !embd->run_rows || !head->run_rows)
        return bad(p, "embedding, head or norms are not described");
    s->embed_segment = embd->segment;
    s->embed_runs = embd->runs;
    s->head_segment = head->segment;
    s->head_runs = head->runs;
    s->norm_segment = norm->segment;
    s->layer_segment = first->segment;
    for (size_t i = 0; i < s->tensors_count; i++) {
        const struct set_tensor *t = &s->tensors[i];
        uint32_t want = t->run_rows    ? t->segment
                        : t->layer < 0 ? s->norm_segment
                                       : s->layer_segment + (uint32_t)t->layer;
        if (t->segment != want)
            return bad(p, "tensor '%s' is in segment %u, expected %u", t->name, t->segment, want);
    }
    return ERR_OK;
}

static enum err_code parse_factors(struct parse *p)
{
    struct model_shape *m = &p->s->shape;
    const json_t *f = json_object_get(p->json, "rope_factors");
    if (json_array_size(f) != m->rope_factors_count)
        return bad(p, "rope_factors are missing");
    for (uint32_t i = 0; i < m->rope_factors_count; i++) {
        double v = json_number_value(json_array_get(f, i));
        if (!(v > 0) || !isfinite(v))
            return bad(p, "rope factor %u is damaged", i);
        m->rope_factors[i] = (float)v;
    }
    return ERR_OK;
}

static enum err_code parse_kind(struct parse *p)
{
    const char *kind = json_string_value(json_object_get(p->json, "kind"));
    if (kind && strcmp(kind, "adapter") == 0) {
        p->s->is_adapter = true;
        double alpha;
        if (gguf_has(p->s->gguf, "adapter.lora.alpha")) {
            enum err_code rc = gguf_get_f64(p->s->gguf, "adapter.lora.alpha", &alpha, p->e);
            if (rc != ERR_OK)
                return rc;
            p->s->adapter_alpha = alpha;
        }
        return parse_tensors(p);
    }
    if (!kind || strcmp(kind, "model") != 0)
        return bad(p, "unknown kind of set '%s'", kind ? kind : "");
    enum err_code rc = model_parse(p->s->gguf, &p->s->shape, p->e);
    if (rc != ERR_OK)
        return err_wrap(p->e, "store object %s", p->o->name);
    rc = parse_factors(p);
    if (rc == ERR_OK)
        rc = parse_tensors(p);
    return rc == ERR_OK ? place_model(p) : rc;
}

static enum err_code parse_meta(struct parse *p)
{
    const char *meta = p->o->meta;
    uint64_t version, header_len;
    json_error_t je;
    const char *nl = memchr(meta, '\n', p->o->meta_bytes);
    p->json = nl ? json_loadb(meta, (size_t)(nl - meta), JSON_REJECT_DUPLICATES, &je) : NULL;
    if (!p->json)
        return bad(p, "no JSON in front: %s", nl ? je.text : "no line end");
    if (!field(p->json, "version", INT32_MAX, true, &version) || version != SET_VERSION)
        return bad(p, "written by another version of switchyard; import the model again");
    size_t left = p->o->meta_bytes - (size_t)(nl + 1 - meta);
    if (!field(p->json, "header_bytes", INT64_MAX, true, &header_len) || header_len != left)
        return bad(p, "the kept header has %zu bytes", left);
    enum err_code rc = gguf_parse(nl + 1, left, UINT64_MAX, p->o->name, &p->s->gguf, p->e);
    return rc == ERR_OK ? parse_kind(p) : rc;
}

enum err_code set_parse(const struct memtier_object *o, struct set_meta **ret, struct err *e)
{
    struct parse p = {.o = o, .s = mem_alloc(sizeof(*p.s)), .e = e};
    struct set_meta *s = p.s;
    s->segments = (uint32_t)o->segments_count;
    s->segment_bytes = mem_array(o->segments_count + 1, sizeof(*s->segment_bytes));
    s->segment_kind = mem_array(o->segments_count + 1, sizeof(*s->segment_kind));
    for (size_t i = 0; i < o->segments_count; i++) {
        s->segment_bytes[i] = o->segments[i].bytes;
        s->segment_kind[i] = o->segments[i].kind;
    }
    enum err_code rc =
        o->segments_count <= UINT32_MAX ? parse_meta(&p) : bad(&p, "too many segments");
    json_decref(p.json);
    if (rc == ERR_OK)
        *ret = s;
    else
        set_close(&s);
    return rc;
}
