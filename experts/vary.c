/* Variants of a model: the same file with low bits of its weights changed. A bench or a soak that
 * needs twelve full models makes them of one: nothing in the store is shared between them, and each
 * behaves like the original. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "experts/gguf.h"
#include "experts/gguf_out.h"

/* One bit in so many bytes: no row and no segment stays as it was. The byte lies at an even offset,
 * so in a float, or in the float that scales a block, it is the least significant bit. */
#define VARY_WINDOW 256

static void vary_bytes(unsigned char *data, size_t len, struct rng *r)
{
    for (size_t at = 0; at + 1 < len; at += VARY_WINDOW) {
        size_t window = BASE_MIN(len - at, (size_t)VARY_WINDOW);
        data[at + 2 * rng_below(r, BASE_MAX(window / 2, (size_t)1))] ^= 1;
    }
}

static enum err_code vary_tensors(struct gguf_out *o, const struct gguf *g, uint64_t seed,
                                  struct err *e)
{
    size_t len;
    const void *header = gguf_header(g, &len);
    enum err_code code = gguf_out_header(o, header, len, g->alignment, e);
    struct rng r;
    rng_init(&r, seed);
    for (size_t i = 0; i < gguf_tensors(g) && code == ERR_OK; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        unsigned char *data = mem_alloc((size_t)t->bytes + 1);
        code = gguf_read_tensor(g, t, data, e);
        vary_bytes(data, (size_t)t->bytes, &r);
        if (code == ERR_OK)
            code = gguf_out_pad(o, o->data_start + t->offset, e);
        if (code == ERR_OK)
            code = gguf_out_write(o, data, (size_t)t->bytes, e);
        free(data);
    }
    return code;
}

enum err_code experts_vary(const char *path, const char *out_path, uint64_t seed, struct err *e)
{
    struct gguf *g = NULL;
    struct gguf_out out = {0};
    enum err_code code = gguf_open(path, &g, e);
    if (code == ERR_OK && g->files_count > 1)
        code = err_set(e, ERR_UNSUPPORTED, "%s is split into %zu files: give one file", path,
                       g->files_count);
    if (code == ERR_OK)
        code = gguf_out_open(&out, out_path, e);
    if (code == ERR_OK) {
        code = vary_tensors(&out, g, seed, e);
        if (code == ERR_OK)
            code = gguf_out_commit(&out, e);
        gguf_out_abort(&out);
    }
    gguf_close(&g);
    return code;
}
