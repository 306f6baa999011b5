/* libFuzzer target of the GGUF reader and of everything that trusts it: accessors, hyperparameters,
 * layouts of models and adapters. One input is one header. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "experts/gguf.h"
#include "experts/model.h"
#include "experts/set.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Makes reading a string count as use. */
static volatile uint64_t sink;

static void read_key(const struct gguf *g, const struct gguf_kv *kv)
{
    char *key = mem_strndup(kv->key, kv->key_len);
    struct gguf_str s, *all = NULL;
    const void *p;
    uint64_t u;
    double d;
    bool b;
    size_t n = 0;
    gguf_get_u64(g, key, &u, NULL);
    gguf_get_f64(g, key, &d, NULL);
    gguf_get_bool(g, key, &b, NULL);
    if (gguf_get_str(g, key, &s, NULL) == ERR_OK)
        sink = sink + hash64_of(s.data, s.len, 0);
    if (gguf_array_f32(g, key, &p, &n, NULL) == ERR_OK ||
        gguf_array_i32(g, key, &p, &n, NULL) == ERR_OK)
        sink = sink + hash64_of(p, n * 4, 0);
    if (gguf_array_strs(g, key, &all, &n, NULL) == ERR_OK) {
        for (size_t i = 0; i < n; i++)
            sink = sink + hash64_of(all[i].data, all[i].len, 0);
        if (n && (gguf_array_str(g, key, n - 1, &s, NULL) != ERR_OK || s.data != all[n - 1].data))
            abort();
        free(all);
    }
    free(key);
}

/* A layout must keep every tensor inside its segments. */
static void check_layout(struct set_meta *s)
{
    for (size_t i = 0; i < s->tensors_count; i++) {
        const struct set_tensor *t = &s->tensors[i];
        if (t->runs > s->segments || t->segment > s->segments - t->runs)
            abort();
        if (!t->run_rows && t->offset + t->bytes > s->segment_bytes[t->segment])
            abort();
        if (set_find(s, t->name) != t)
            abort();
    }
}

static void lay_out(struct gguf **g)
{
    /* What an adapter is checked against when the input is no model. */
    static const struct model_shape base = {.layers = 2,
                                            .width = 64,
                                            .heads = 4,
                                            .kv_heads = 2,
                                            .head_dim = 16,
                                            .ffn = 192,
                                            .vocab = 512};
    struct model_shape shape;
    struct set_meta *s = NULL;
    enum err_code rc;
    if (model_parse(*g, &shape, NULL) == ERR_OK)
        rc = set_plan_model(g, &shape, &s, NULL);
    else
        rc = set_plan_adapter(g, &base, &s, NULL);
    if (rc == ERR_OK)
        check_layout(s);
    set_close(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gguf *g = NULL;
    /* Once as a header in the store, once as a file whose data section is small. */
    if (gguf_parse(data, size, size + 4096, "input", &g, NULL) == ERR_OK)
        gguf_close(&g);
    if (gguf_parse(data, size, UINT64_MAX, "input", &g, NULL) != ERR_OK)
        return 0;
    size_t len;
    if (gguf_header(g, &len) == NULL || len > size)
        abort();
    for (size_t i = 0; i < g->kv_count; i++)
        read_key(g, &g->kv[i]);
    for (size_t i = 0; i < gguf_tensors(g); i++)
        if (gguf_find_tensor(g, gguf_tensor_at(g, i)->name) != gguf_tensor_at(g, i))
            abort();
    lay_out(&g);
    gguf_close(&g);
    return 0;
}
