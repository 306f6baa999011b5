/* Moving a weight set's bytes: out of GGUF files into segments, and back. Memory: one segment and
 * one tensor at a time, whatever the size of the model. */
#include "experts/gguf.h"
#include "experts/set.h"

#include <stdlib.h>
#include <string.h>

struct writing {
    const struct set_meta *s;
    uint8_t *segment, *raw;
    struct err *e;
};

/* One vector as plain f32, whatever float type the file has. */
static enum err_code fill_vector(struct writing *w, const struct gguf_tensor *t, uint8_t *dst)
{
    enum err_code rc = gguf_read_tensor(w->s->gguf, t, w->raw, w->e);
    if (rc == ERR_OK)
        rdu_dequant_row(t->type, w->raw, (float *)(void *)dst, (size_t)t->dim[0]);
    return rc;
}

static enum err_code fill_rows(struct writing *w, const struct set_tensor *st,
                               const struct gguf_tensor *t, uint32_t row_from, uint32_t rows,
                               uint8_t *dst)
{
    uint64_t row_bytes = t->bytes / st->rows;
    enum err_code rc = gguf_read_range(w->s->gguf, t, row_from * row_bytes,
                                       (size_t)(rows * row_bytes), w->raw, w->e);
    if (rc == ERR_OK)
        rdu_pack_rows(st->type, rows, st->cols, w->raw, dst);
    return rc;
}

/* What tensor `st` has in segment `seg`; nothing if it lies elsewhere. */
static enum err_code fill_tensor(struct writing *w, const struct set_tensor *st, uint32_t seg)
{
    if (seg < st->segment || seg >= st->segment + st->runs)
        return ERR_OK;
    const struct gguf_tensor *t = gguf_find_tensor(w->s->gguf, st->name);
    uint8_t *dst = w->segment + st->offset;
    if (st->is_vector)
        return fill_vector(w, t, dst);
    if (!st->run_rows)
        return fill_rows(w, st, t, 0, st->rows, dst);
    uint32_t from = (seg - st->segment) * st->run_rows;
    return fill_rows(w, st, t, from, BASE_MIN(st->run_rows, st->rows - from), dst);
}

/* Largest piece of a file that is read at once. */
static size_t raw_bytes_max(const struct set_meta *s)
{
    uint64_t n = 1;
    for (size_t i = 0; i < s->tensors_count; i++) {
        const struct set_tensor *st = &s->tensors[i];
        uint64_t bytes = gguf_find_tensor(s->gguf, st->name)->bytes;
        if (st->run_rows)
            bytes = bytes / st->rows * BASE_MIN(st->run_rows, st->rows);
        n = BASE_MAX(n, bytes);
    }
    return (size_t)n;
}

static size_t segment_bytes_max(const struct set_meta *s)
{
    uint64_t n = 1;
    for (uint32_t i = 0; i < s->segments; i++)
        n = BASE_MAX(n, s->segment_bytes[i]);
    return (size_t)n;
}

/* Tensors come in load order, so those of one segment follow each other: start where the last
 * segment ended. */
static enum err_code fill_segment(struct writing *w, uint32_t seg, size_t *tensor_idx)
{
    const struct set_meta *s = w->s;
    memset(w->segment, 0, (size_t)s->segment_bytes[seg]);
    enum err_code rc = ERR_OK;
    while (*tensor_idx < s->tensors_count && rc == ERR_OK) {
        const struct set_tensor *st = &s->tensors[*tensor_idx];
        if (st->segment > seg)
            break;
        rc = fill_tensor(w, st, seg);
        if (st->segment + st->runs > seg + 1)
            break;
        ++*tensor_idx;
    }
    return rc;
}

static enum err_code write_segments(struct memtier_writer *mw, struct writing *w, const char *what,
                                    const struct progress *progress, struct expert_add_report *rep)
{
    const struct set_meta *s = w->s;
    uint64_t done = 0, total = set_bytes(s);
    size_t tensor_idx = 0;
    for (uint32_t seg = 0; seg < s->segments; seg++) {
        if (!progress_report(progress, what, done, total))
            return err_set(w->e, ERR_CANCELLED, "import cancelled; the store is as before");
        enum err_code rc = fill_segment(w, seg, &tensor_idx);
        bool shared = false;
        size_t bytes = (size_t)s->segment_bytes[seg];
        if (rc == ERR_OK)
            rc = memtier_writer_add(mw, s->segment_kind[seg], w->segment, bytes, &shared, w->e);
        if (rc != ERR_OK)
            return rc;
        done += bytes;
        rep->segments++;
        rep->segments_shared += shared;
        *(shared ? &rep->bytes_shared : &rep->bytes_written) += bytes;
    }
    progress_report(progress, what, done, total);
    return ERR_OK;
}

enum err_code set_write(struct memtier_store *store, const struct set_meta *s, const char *object,
                        const struct progress *progress, struct expert_add_report *ret,
                        struct err *e)
{
    struct writing w = {.s = s, .e = e};
    struct expert_add_report rep = *ret;
    struct memtier_writer *mw = NULL;
    struct buf meta = {0};
    char size[32];
    char *what = mem_format("writing %s to %s", size_format(set_bytes(s), size, sizeof(size)),
                            memtier_store_path(store));
    size_t segment_max = segment_bytes_max(s), raw_max = raw_bytes_max(s);
    w.segment = aligned_alloc(SET_ALIGN, (segment_max + SET_ALIGN - 1) & ~(size_t)(SET_ALIGN - 1));
    w.raw = malloc(raw_max);
    enum err_code rc = ERR_OK;
    if (!w.segment || !w.raw)
        rc = err_set(e, ERR_NO_MEMORY, "no memory for a segment of %zu bytes", segment_max);
    if (rc == ERR_OK)
        rc = set_format(s, &meta, e);
    if (rc == ERR_OK)
        rc = memtier_writer_open(store, object, set_bytes(s), &mw, e);
    if (rc == ERR_OK)
        rc = write_segments(mw, &w, what, progress, &rep);
    if (rc == ERR_OK)
        rc = memtier_writer_commit(&mw, meta.data, meta.len, e);
    if (rc == ERR_OK)
        *ret = rep;
    memtier_writer_abort(&mw);
    buf_done(&meta);
    free(what);
    free(w.segment);
    free(w.raw);
    return rc;
}

/* ---- back out ---- */

enum err_code set_reader_init(struct set_reader *r, struct memtier_store *store, const char *object,
                              struct err *e)
{
    *r = (struct set_reader){.store = store, .segment_idx = UINT32_MAX};
    r->object = memtier_store_find(store, object);
    if (!r->object)
        return err_set(e, ERR_CORRUPT, "the store has no object %s, which an expert needs", object);
    enum err_code rc = set_parse(r->object, &r->set, e);
    if (rc != ERR_OK)
        return rc;
    r->segment = aligned_alloc(SET_ALIGN, (segment_bytes_max(r->set) + SET_ALIGN - 1) &
                                              ~(size_t)(SET_ALIGN - 1));
    if (!r->segment) {
        set_close(&r->set);
        return err_set(e, ERR_NO_MEMORY, "no memory for the largest segment of %s", object);
    }
    return ERR_OK;
}

void set_reader_done(struct set_reader *r)
{
    free(r->segment);
    set_close(&r->set);
    *r = (struct set_reader){.segment_idx = UINT32_MAX};
}

static enum err_code load_segment(struct set_reader *r, uint32_t seg, struct err *e)
{
    if (r->segment_idx == seg)
        return ERR_OK;
    const struct memtier_segment_info *info = &r->object->segments[seg];
    r->segment_idx = UINT32_MAX;
    enum err_code rc = memtier_store_read(r->store, info->hash, r->segment, (size_t)info->bytes, e);
    if (rc != ERR_OK)
        return err_wrap(e, "segment %u of %s", seg, r->object->name);
    r->segment_idx = seg;
    return ERR_OK;
}

static enum err_code read_vector(const struct set_reader *r, const struct set_tensor *t, void *dst,
                                 struct err *e)
{
    const float *src = (const float *)(const void *)(r->segment + t->offset);
    if (t->file_type == RDU_F32) {
        memcpy(dst, src, (size_t)t->bytes);
        return ERR_OK;
    }
    /* F16 and BF16 were widened at import, so narrowing gives the original bits. */
    return rdu_quantize_row(t->file_type, src, dst, t->cols, e);
}

enum err_code set_read_rows(struct set_reader *r, const struct set_tensor *t, uint32_t row_from,
                            uint32_t rows, void *dst, struct err *e)
{
    uint8_t *out = dst;
    size_t group = rdu_pack_bytes(t->type, RDU_GROUP, t->cols);
    const struct rdu_type_info *ti = rdu_type_info(t->type);
    size_t row_bytes = (size_t)t->cols / ti->block_elems * ti->block_bytes;
    while (rows > 0) {
        uint32_t run = t->run_rows ? row_from / t->run_rows : 0;
        enum err_code rc = load_segment(r, t->segment + run, e);
        if (rc != ERR_OK)
            return rc;
        if (t->is_vector)
            return read_vector(r, t, out, e);
        uint32_t at = row_from - run * t->run_rows;
        uint32_t n = t->run_rows ? BASE_MIN(rows, t->run_rows - at) : rows;
        rdu_unpack_rows(t->type, n, t->cols, r->segment + t->offset + at / RDU_GROUP * group, out);
        out += n * row_bytes;
        row_from += n;
        rows -= n;
    }
    return ERR_OK;
}
