/* Seeded mutations of real headers: whatever comes out must be refused or be walkable from end to
 * end without reading out of bounds (run under the sanitizers). */
#include "tests/unit/experts/unit.h"

#include "experts/gguf.h"
#include "experts/model.h"
#include "experts/set.h"

#define ROUNDS 6000

/* Touch everything the accessors can give. */
static uint64_t walk(const struct gguf *g)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < g->kv_count; i++) {
        char *key = mem_strndup(g->kv[i].key, g->kv[i].key_len);
        struct gguf_str s, *all = NULL;
        const void *p;
        double d;
        uint64_t u;
        size_t n = 0;
        bool b;
        struct err e;
        sum += gguf_get_u64(g, key, &u, &e) == ERR_OK ? u : 0;
        sum += gguf_get_f64(g, key, &d, &e) == ERR_OK;
        sum += gguf_get_bool(g, key, &b, &e) == ERR_OK;
        if (gguf_get_str(g, key, &s, &e) == ERR_OK)
            sum += hash64_of(s.data, s.len, 0);
        if (gguf_array_f32(g, key, &p, &n, &e) == ERR_OK ||
            gguf_array_i32(g, key, &p, &n, &e) == ERR_OK)
            sum += hash64_of(p, n * 4, 0);
        if (gguf_array_strs(g, key, &all, &n, &e) == ERR_OK) {
            for (size_t k = 0; k < n; k++)
                sum += hash64_of(all[k].data, all[k].len, 0);
            if (n && gguf_array_str(g, key, n - 1, &s, &e) == ERR_OK)
                assert_ptr_equal(s.data, all[n - 1].data);
            free(all);
        }
        free(key);
    }
    for (size_t i = 0; i < gguf_tensors(g); i++)
        sum += hash64_of(gguf_tensor_at(g, i)->name, strlen(gguf_tensor_at(g, i)->name), 0);
    return sum;
}

/* Numbers at which arithmetic goes wrong. */
static uint64_t sharp(struct rng *r)
{
    static const uint64_t list[] = {0,
                                    1,
                                    2,
                                    7,
                                    8,
                                    9,
                                    31,
                                    32,
                                    255,
                                    256,
                                    65535,
                                    65536,
                                    INT32_MAX,
                                    UINT32_MAX,
                                    (uint64_t)1 << 32,
                                    INT64_MAX,
                                    (uint64_t)1 << 63,
                                    UINT64_MAX,
                                    UINT64_MAX - 7};
    return list[rng_below(r, BASE_COUNT(list))];
}

static size_t mutate(struct rng *r, uint8_t *b, size_t len)
{
    unsigned times = 1 + (unsigned)rng_below(r, 4);
    for (unsigned i = 0; i < times && len > 16; i++) {
        size_t at = rng_below(r, len - 8);
        uint64_t v = sharp(r);
        switch (rng_below(r, 6)) {
        case 0:
            b[at] ^= (uint8_t)(1u << rng_below(r, 8));
            break;
        case 1:
            b[at] = (uint8_t)rng_u64(r);
            break;
        case 2:
            memcpy(b + at, &v, 4);
            break;
        case 3:
            memcpy(b + at, &v, 8);
            break;
        case 4: { /* cut a piece out */
            size_t n = 1 + rng_below(r, 64);
            n = BASE_MIN(n, len - at);
            memmove(b + at, b + at + n, len - at - n);
            len -= n;
            break;
        }
        default:
            len = rng_below(r, 8) ? len : at;
        }
    }
    return len;
}

/* Layouts are planned from a header alone; a plan must stay inside its own segments. */
static void plan(struct gguf **g, const struct model_shape *shape)
{
    struct set_meta *s = NULL;
    struct err e;
    if (set_plan_model(g, shape, &s, &e) != ERR_OK)
        return;
    for (size_t i = 0; i < s->tensors_count; i++) {
        const struct set_tensor *t = &s->tensors[i];
        assert_true(t->segment + t->runs <= s->segments);
        if (!t->run_rows)
            assert_true(t->offset + t->bytes <= s->segment_bytes[t->segment]);
    }
    set_close(&s);
}

static void mutate_file(const char *data, struct rng *rng, const struct model_shape *base)
{
    struct gguf *g;
    struct err e;
    size_t len, parsed = 0, models = 0;
    char *path = unit_data(data);
    unit_ok(gguf_open(path, &g, &e), &e);
    const void *header = gguf_header(g, &len);
    uint8_t *copy = mem_alloc(len);
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct gguf *m = NULL;
        struct model_shape shape;
        memcpy(copy, header, len);
        size_t n = mutate(rng, copy, len);
        /* An allocation of exactly n bytes, so that the sanitizer sees one byte too far. */
        uint8_t *exact = mem_alloc(n);
        memcpy(exact, copy, n);
        enum err_code rc =
            gguf_parse(exact, n, round % 2 ? UINT64_MAX : n + 65536, "mutant", &m, &e);
        free(exact);
        if (rc != ERR_OK)
            continue;
        parsed++;
        walk(m);
        if (base) {
            struct set_meta *s = NULL;
            models += set_plan_adapter(&m, base, &s, &e) == ERR_OK;
            set_close(&s);
        } else if (model_parse(m, &shape, &e) == ERR_OK) {
            struct tokenizer *t = NULL;
            models++;
            /* Opening a tokenizer is the slow part: a share of the survivors is enough. */
            if (models % 16 == 0 && tokenizer_open(m, &t, &e) == ERR_OK)
                tokenizer_close(&t);
            plan(&m, &shape);
        }
        gguf_close(&m);
    }
    /* Both outcomes must be common, or the mutations test nothing. */
    assert_true(parsed > ROUNDS / 100 && parsed < ROUNDS);
    assert_true(models > 0 && models < ROUNDS);
    free(copy);
    gguf_close(&g);
    free(path);
}

static void mutated_models_are_refused_or_whole(void **state)
{
    struct rng rng;
    rng_init(&rng, unit_seed());
    mutate_file("tiny/tiny-llama-q4_0.gguf", &rng, NULL);
    mutate_file("tiny/tiny-gemma2-q8_0.gguf", &rng, NULL);
}

static void mutated_adapters_are_refused_or_whole(void **state)
{
    struct rng rng;
    struct gguf *g;
    struct err e;
    struct model_shape base;
    char *path = unit_data("tiny/tiny-llama-f32.gguf");
    unit_ok(gguf_open(path, &g, &e), &e);
    unit_ok(model_parse(g, &base, &e), &e);
    gguf_close(&g);
    free(path);
    rng_init(&rng, unit_seed());
    mutate_file("tiny/lora-psalms.gguf", &rng, &base);
}

/* The description of a set in the store, damaged: an error, never a tensor outside its segment. */
static void mutated_descriptions_are_refused_or_whole(void **state)
{
    struct rng rng;
    struct err e;
    struct expert_record *r;
    size_t parsed = 0;
    char *dir = unit_dir_open(), *path = unit_data("tiny/tiny-llama-q4_1.gguf");
    struct memtier_store *store = unit_store(dir, MEMTIER_WRITE);
    rng_init(&rng, unit_seed());
    unit_ok(unit_add(store, path, "m", NULL, NULL, &e), &e);
    unit_ok(expert_record_find(store, "m", &r, &e), &e);
    const struct memtier_object *o = memtier_store_find(store, r->set);
    size_t json =
        (size_t)((const char *)memchr(o->meta, '\n', o->meta_bytes) - (const char *)o->meta);
    for (unsigned round = 0; round < ROUNDS / 3; round++) {
        struct memtier_object changed = *o;
        struct set_meta *s = NULL;
        uint8_t *meta = mem_alloc(o->meta_bytes);
        memcpy(meta, o->meta, o->meta_bytes);
        /* One digit of the table, or anything anywhere. */
        size_t at = rng_below(&rng, json);
        if (round % 2 && meta[at] >= '0' && meta[at] <= '9')
            meta[at] = (uint8_t)('0' + rng_below(&rng, 10));
        else
            changed.meta_bytes = mutate(&rng, meta, o->meta_bytes);
        changed.meta = meta;
        if (set_parse(&changed, &s, &e) == ERR_OK) {
            parsed++;
            for (size_t i = 0; i < s->tensors_count; i++) {
                const struct set_tensor *t = &s->tensors[i];
                assert_true(t->segment + t->runs <= o->segments_count);
                assert_true(t->run_rows || t->offset + t->bytes <= o->segments[t->segment].bytes);
            }
        }
        set_close(&s);
        free(meta);
    }
    assert_true(parsed > 0 && parsed < ROUNDS / 3);
    expert_record_close(&r);
    memtier_store_close(&store);
    free(path);
    unit_dir_close(&dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mutated_models_are_refused_or_whole),
        cmocka_unit_test(mutated_adapters_are_refused_or_whole),
        cmocka_unit_test(mutated_descriptions_are_refused_or_whole),
    };
    return cmocka_run_group_tests_name("gguf_mutate", tests, NULL, NULL);
}
