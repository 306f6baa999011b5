/* experts export: the GGUF file an expert was made from, header byte for byte and tensors unpacked.
 * Equal to the original file but for bytes no tensor owns (padding that was not zero, a tail). */
#include "experts/gguf.h"
#include "experts/gguf_out.h"
#include "experts/set.h"

#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES ((size_t)4 << 20)

static int by_offset(const void *a, const void *b)
{
    const struct gguf_tensor *x = *(const struct gguf_tensor *const *)a;
    const struct gguf_tensor *y = *(const struct gguf_tensor *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Tensors may stand in any order, and two may even share bytes: what lies behind the position of
 * the file is left out, it was written with the tensor before. */
static enum err_code write_tensor(struct gguf_out *out, struct set_reader *r,
                                  const struct gguf_tensor *t, uint8_t *piece, struct err *e)
{
    const struct set_tensor *st = set_find(r->set, t->name);
    uint64_t row_bytes = t->bytes / st->rows, start = out->data_start + t->offset;
    if (start > out->at) {
        enum err_code rc = gguf_out_pad(out, start, e);
        if (rc != ERR_OK)
            return rc;
    }
    uint32_t step = (uint32_t)BASE_MAX(PIECE_BYTES / row_bytes / RDU_GROUP, 1u) * RDU_GROUP;
    for (uint32_t row = 0; row < st->rows; row += step) {
        uint32_t n = BASE_MIN(step, st->rows - row);
        uint64_t at = start + row * row_bytes, len = n * row_bytes;
        if (at + len <= out->at)
            continue;
        enum err_code rc = set_read_rows(r, st, row, n, piece, e);
        uint64_t skip = out->at > at ? out->at - at : 0;
        if (rc == ERR_OK)
            rc = gguf_out_write(out, piece + skip, (size_t)(len - skip), e);
        if (rc != ERR_OK)
            return rc;
    }
    return ERR_OK;
}

static size_t piece_bytes(const struct set_meta *s)
{
    uint64_t n = PIECE_BYTES;
    for (size_t i = 0; i < gguf_tensors(s->gguf); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(s->gguf, i);
        n = BASE_MAX(n, t->bytes / t->dim[1] * RDU_GROUP);
    }
    return (size_t)n;
}

static enum err_code write_tensors(struct gguf_out *out, struct set_reader *r, uint8_t *piece,
                                   const struct progress *progress, struct err *e)
{
    const struct gguf *g = r->set->gguf;
    size_t n = gguf_tensors(g);
    const struct gguf_tensor **order = mem_array(n + 1, sizeof(struct gguf_tensor *));
    uint64_t total = 0;
    for (size_t i = 0; i < n; i++) {
        order[i] = gguf_tensor_at(g, i);
        total += order[i]->bytes;
    }
    qsort(order, n, sizeof(struct gguf_tensor *), by_offset);
    char *what = mem_format("writing %s", out->path);
    enum err_code rc = ERR_OK;
    for (size_t i = 0; i < n && rc == ERR_OK; i++) {
        rc = write_tensor(out, r, order[i], piece, e);
        if (rc == ERR_OK && !progress_report(progress, what, out->at - out->data_start, total))
            rc = err_set(e, ERR_CANCELLED, "export cancelled; '%.200s' was not written", out->path);
    }
    free(what);
    free(order);
    return rc;
}

static enum err_code export_set(struct set_reader *r, const char *path,
                                const struct progress *progress, struct err *e)
{
    struct gguf_out out;
    const struct gguf *g = r->set->gguf;
    size_t header_len;
    const void *header = gguf_header(g, &header_len);
    uint8_t *piece = malloc(piece_bytes(r->set));
    if (!piece)
        return err_set(e, ERR_NO_MEMORY, "no memory for a piece of the file");
    enum err_code rc = gguf_out_open(&out, path, e);
    if (rc == ERR_OK)
        rc = gguf_out_header(&out, header, header_len, g->alignment, e);
    if (rc == ERR_OK)
        rc = write_tensors(&out, r, piece, progress, e);
    /* Common writers pad the end as well. */
    if (rc == ERR_OK)
        rc = gguf_out_pad(&out, (out.at + g->alignment - 1) & ~(g->alignment - 1), e);
    if (rc == ERR_OK)
        rc = gguf_out_commit(&out, e);
    gguf_out_abort(&out);
    free(piece);
    return rc;
}

enum err_code experts_export(struct memtier_store *store, const char *name, const char *out_path,
                             const struct progress *progress, struct err *e)
{
    struct err local;
    struct expert_record *rec = NULL;
    struct set_reader r = {0};
    e = e ? e : &local;
    enum err_code rc = expert_record_find(store, name, &rec, e);
    if (rc != ERR_OK)
        return rc;
    rc = set_reader_init(&r, store, rec->adapter_set ? rec->adapter_set : rec->set, e);
    if (rc == ERR_OK) {
        rc = export_set(&r, out_path, progress, e);
        set_reader_done(&r);
    }
    expert_record_close(&rec);
    return rc;
}
