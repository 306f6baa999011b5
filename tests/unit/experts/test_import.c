/* experts_add, _list and _remove: what is written, what is shared, what is refused, and what is
 * left when the process is killed in the middle. */
#include "tests/unit/experts/unit.h"

#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "experts/gguf.h"
#include "experts/set.h"

struct place {
    char *dir, *store_dir;
    struct memtier_store *store;
};

static int place_open(void **state)
{
    struct place *p = mem_alloc(sizeof(*p));
    p->dir = unit_dir_open();
    p->store_dir = unit_path(p->dir, "store");
    p->store = unit_store(p->store_dir, MEMTIER_WRITE);
    *state = p;
    return 0;
}

static int place_close(void **state)
{
    struct place *p = *state;
    memtier_store_close(&p->store);
    free(p->store_dir);
    unit_dir_close(&p->dir);
    free(p);
    return 0;
}

static enum err_code add(struct place *p, const char *data, const char *name, const char *base,
                         struct expert_add_report *rep, struct err *e)
{
    char *path = unit_data(data);
    enum err_code rc = unit_add(p->store, path, name, base, rep, e);
    free(path);
    return rc;
}

static struct set_meta *set_of(struct place *p, const char *expert, bool adapter)
{
    struct expert_record *r;
    struct set_meta *s;
    struct err e;
    unit_ok(expert_record_find(p->store, expert, &r, &e), &e);
    const struct memtier_object *o =
        memtier_store_find(p->store, adapter ? r->adapter_set : r->set);
    assert_non_null(o);
    unit_ok(set_parse(o, &s, &e), &e);
    expert_record_close(&r);
    return s;
}

static void a_model_becomes_segments_in_load_order(void **state)
{
    struct place *p = *state;
    struct expert_add_report rep;
    struct err e;
    unit_ok(add(p, "tiny/tiny-qwen2-q8_0.gguf", "q", NULL, &rep, &e), &e);
    assert_int_equal(rep.segments, 5); /* embedding, two layers, norm, head */
    assert_int_equal(rep.segments_shared, 0);
    struct set_meta *s = set_of(p, "q", false);
    assert_int_equal(s->embed_segment, 0);
    assert_int_equal(s->embed_runs, 1);
    assert_int_equal(s->layer_segment, 1);
    assert_int_equal(s->norm_segment, 3);
    assert_int_equal(s->head_segment, 4);
    static const enum memtier_kind kinds[] = {MEMTIER_KIND_ROWS, MEMTIER_KIND_LAYER,
                                              MEMTIER_KIND_LAYER, MEMTIER_KIND_NORM,
                                              MEMTIER_KIND_ROWS};
    for (uint32_t i = 0; i < s->segments; i++)
        assert_int_equal(s->segment_kind[i], kinds[i]);
    for (size_t i = 0; i < s->tensors_count; i++) {
        assert_int_equal(s->tensors[i].offset % SET_ALIGN, 0);
        assert_ptr_equal(set_find(s, s->tensors[i].name), &s->tensors[i]);
    }
    const struct set_tensor *bias = set_find_slot(s, 1, "attn_q.bias");
    assert_true(bias && bias->is_vector && bias->type == RDU_F32 && bias->segment == 2);
    assert_int_equal(set_find_slot(s, 0, "attn_q.weight")->segment, 1);
    assert_null(set_find(s, "nosuch"));
    assert_int_equal(s->shape.vocab, 512);
    set_close(&s);
}

static void packed_tensors_hold_the_rows_of_the_file(void **state)
{
    struct place *p = *state;
    struct err e;
    unit_ok(add(p, "tiny/tiny-llama-q4_1.gguf", "m", NULL, NULL, &e), &e);
    struct set_meta *s = set_of(p, "m", false);
    const struct set_tensor *t = set_find(s, "blk.1.ffn_down.weight");
    struct expert_record *r;
    unit_ok(expert_record_find(p->store, "m", &r, &e), &e);
    const struct memtier_object *o = memtier_store_find(p->store, r->set);
    const struct memtier_segment_info *info = &o->segments[t->segment];
    uint8_t *segment = aligned_alloc(64, (info->bytes + 63) / 64 * 64);
    unit_ok(memtier_store_read(p->store, info->hash, segment, info->bytes, &e), &e);
    char *path = unit_data("tiny/tiny-llama-q4_1.gguf");
    struct gguf *g;
    unit_ok(gguf_open(path, &g, &e), &e);
    const struct gguf_tensor *gt = gguf_find_tensor(g, t->name);
    uint8_t *raw = mem_alloc(gt->bytes), *back = mem_alloc(gt->bytes);
    unit_ok(gguf_read_tensor(g, gt, raw, &e), &e);
    rdu_unpack_rows(t->type, t->rows, t->cols, segment + t->offset, back);
    assert_memory_equal(raw, back, gt->bytes);
    free(raw);
    free(back);
    free(segment);
    free(path);
    gguf_close(&g);
    expert_record_close(&r);
    set_close(&s);
}

static void adding_again_changes_nothing(void **state)
{
    struct place *p = *state;
    struct expert_add_report rep;
    struct err e;
    unit_ok(add(p, "tiny/tiny-llama-q8_0.gguf", "m", NULL, &rep, &e), &e);
    assert_true(rep.bytes_written > 0);
    uint64_t bytes = memtier_store_bytes(p->store);
    unit_ok(add(p, "tiny/tiny-llama-q8_0.gguf", "m", NULL, &rep, &e), &e);
    assert_int_equal(rep.bytes_written, 0);
    assert_int_equal(rep.segments, rep.segments_shared);
    assert_int_equal(memtier_store_objects(p->store), 2);
    /* The same weights under another name cost a record. */
    unit_ok(add(p, "tiny/tiny-llama-q8_0.gguf", "again", NULL, &rep, &e), &e);
    assert_int_equal(rep.bytes_written, 0);
    assert_int_equal(memtier_store_objects(p->store), 3);
    assert_int_equal(memtier_store_bytes(p->store), bytes);
}

static void a_name_is_not_taken_over(void **state)
{
    struct place *p = *state;
    struct err e;
    const char *const aliases[] = {"other-name"};
    char *path = unit_data("tiny/tiny-llama-q4_0.gguf");
    struct expert_add_options opt = {
        .path = path, .name = "m", .aliases = aliases, .aliases_count = 1};
    unit_ok(experts_add(p->store, &opt, NULL, NULL, &e), &e);
    unit_code(add(p, "tiny/tiny-llama-q8_0.gguf", "m", NULL, NULL, &e), ERR_EXISTS, &e);
    unit_says(&e, "experts rm m");
    unit_code(add(p, "tiny/tiny-llama-q8_0.gguf", "other-name", NULL, NULL, &e), ERR_EXISTS, &e);
    unit_says(&e, "already means expert 'm'");
    const char *const clash[] = {"m"};
    struct expert_add_options second = {
        .path = path, .name = "n", .aliases = clash, .aliases_count = 1};
    unit_code(experts_add(p->store, &second, NULL, NULL, &e), ERR_EXISTS, &e);
    /* Other texts are other content. */
    opt.description = "something new";
    unit_code(experts_add(p->store, &opt, NULL, NULL, &e), ERR_EXISTS, &e);
    assert_int_equal(memtier_store_objects(p->store), 2);
    free(path);
}

static void bad_options_are_refused_before_the_file_is_read(void **state)
{
    struct place *p = *state;
    struct err e;
    char longest[98];
    memset(longest, 'x', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    const char *const names[] = {"", "a b", ".x", "/x", "auto", "x\ny", "\xff", longest};
    for (size_t i = 0; i < BASE_COUNT(names); i++) {
        unit_code(unit_add(p->store, "nosuch.gguf", names[i], NULL, NULL, &e), ERR_INVALID, &e);
        assert_string_equal(e.param, "name");
    }
    unit_code(unit_add(p->store, "nosuch.gguf", "x", NULL, NULL, &e), ERR_NOT_FOUND, &e);
    const char *const twice[] = {"a", "a"}, *const self[] = {"x"};
    struct expert_add_options opt = {
        .path = "nosuch.gguf", .name = "x", .aliases = twice, .aliases_count = 2};
    unit_code(experts_add(p->store, &opt, NULL, NULL, &e), ERR_INVALID, &e);
    opt.aliases = self;
    opt.aliases_count = 1;
    unit_code(experts_add(p->store, &opt, NULL, NULL, &e), ERR_INVALID, &e);
    struct expert_add_options scaled = {.path = "nosuch.gguf", .name = "x", .scale = 0.5};
    unit_code(experts_add(p->store, &scaled, NULL, NULL, &e), ERR_INVALID, &e);
    assert_string_equal(e.param, "scale");
    scaled.scale = (double)NAN;
    scaled.base = "b";
    unit_code(experts_add(p->store, &scaled, NULL, NULL, &e), ERR_INVALID, &e);
    struct expert_add_options text = {.path = "nosuch.gguf", .name = "x", .system = "\xc3("};
    unit_code(experts_add(p->store, &text, NULL, NULL, &e), ERR_INVALID, &e);
    assert_string_equal(e.param, "system");
    assert_int_equal(memtier_store_objects(p->store), 0);
}

/* ---- adapters ---- */

static void an_adapter_is_one_segment_of_pairs(void **state)
{
    struct place *p = *state;
    struct err e;
    struct expert_add_report rep;
    unit_ok(add(p, "tiny/tiny-llama-f32.gguf", "base", NULL, NULL, &e), &e);
    unit_ok(add(p, "tiny/lora-upper.gguf", "upper", "base", &rep, &e), &e);
    assert_int_equal(rep.segments, 1);
    struct set_meta *s = set_of(p, "upper", true);
    assert_true(s->is_adapter);
    assert_int_equal(s->segment_kind[0], MEMTIER_KIND_ADAPTER);
    const struct set_tensor *a, *b;
    float scale;
    assert_true(set_find_delta(s, 1, "attn_q.weight", &a, &b, &scale));
    assert_int_equal(a->rows, 4);
    assert_int_equal(a->cols, 64);
    assert_int_equal(b->rows, 64);
    assert_int_equal(b->cols, 4);
    assert_true(scale == 2.0F); /* alpha 8 over rank 4 */
    assert_false(set_find_delta(s, 1, "attn_k.weight", &a, &b, &scale));
    assert_false(set_find_delta(s, 2, "attn_q.weight", &a, &b, &scale));
    set_close(&s);
}

static void adapters_must_fit_their_base(void **state)
{
    struct place *p = *state;
    struct err e;
    unit_ok(add(p, "tiny/tiny-llama-f32.gguf", "llama", NULL, NULL, &e), &e);
    unit_ok(add(p, "tiny/tiny-qwen2-f32.gguf", "qwen", NULL, NULL, &e), &e);
    unit_ok(add(p, "tiny/lora-upper.gguf", "upper", "llama", NULL, &e), &e);
    size_t objects = memtier_store_objects(p->store);
    unit_code(add(p, "tiny/lora-psalms.gguf", "x", "qwen", NULL, &e), ERR_INVALID, &e);
    unit_says(&e, "architecture 'llama'");
    unit_code(add(p, "tiny/lora-psalms.gguf", "x", "nosuch", NULL, &e), ERR_NOT_FOUND, &e);
    unit_says(&e, "llama, qwen, upper");
    unit_code(add(p, "tiny/lora-psalms.gguf", "x", NULL, NULL, &e), ERR_INVALID, &e);
    unit_says(&e, "together with its base");
    unit_code(add(p, "tiny/tiny-llama-f32.gguf", "x", "llama", NULL, &e), ERR_INVALID, &e);
    unit_says(&e, "not an adapter");
    assert_int_equal(memtier_store_objects(p->store), objects);
}

static void adapters_may_be_stacked_four_high(void **state)
{
    static const char *const names[] = {"base", "a1", "a2", "a3", "a4"};
    struct place *p = *state;
    struct err e;
    struct expert_record *r;
    unit_ok(add(p, "tiny/tiny-llama-f32.gguf", "base", NULL, NULL, &e), &e);
    for (unsigned i = 1; i < BASE_COUNT(names); i++)
        unit_ok(add(p, i % 2 ? "tiny/lora-upper.gguf" : "tiny/lora-psalms.gguf", names[i],
                    names[i - 1], NULL, &e),
                &e);
    unit_code(add(p, "tiny/lora-upper.gguf", "a5", "a4", NULL, &e), ERR_UNSUPPORTED, &e);
    unit_says(&e, "4 may be stacked");
    unit_ok(expert_record_find(p->store, "a4", &r, &e), &e);
    assert_string_equal(r->base, "a3");
    const struct memtier_object *o = memtier_store_find(p->store, r->set);
    assert_true(o && o->segments_count > 1); /* the model's, not an adapter's */
    expert_record_close(&r);
    unit_code(experts_remove(p->store, "a2", &e), ERR_BUSY, &e);
}

struct adapter_case {
    const char *says;
    void (*make)(struct made *m);
    enum err_code code;
};

static const float numbers[64 * 64] = {1};

static void pair(struct made *m, const char *slot, uint64_t cols, uint64_t rows, uint64_t rank)
{
    char *a = mem_format("%s.lora_a", slot), *b = mem_format("%s.lora_b", slot);
    made_data(m, a, cols, rank, 0, numbers, cols * rank * 4);
    made_data(m, b, rank, rows, 0, numbers, rank * rows * 4);
    free(a);
    free(b);
}

static void make_no_pairs(struct made *m)
{
}

static void make_other_width(struct made *m)
{
    pair(m, "blk.0.attn_q.weight", 32, 64, 4);
}

static void make_embedding(struct made *m)
{
    pair(m, "token_embd.weight", 64, 512, 2);
}

static void make_layer_5(struct made *m)
{
    pair(m, "blk.5.attn_q.weight", 64, 64, 2);
}

static void make_norm(struct made *m)
{
    pair(m, "blk.0.attn_norm.weight", 64, 1, 2);
}

static void make_half(struct made *m)
{
    made_data(m, "blk.0.attn_q.weight.lora_a", 64, 2, 0, numbers, 64 * 2 * 4);
}

static void make_ranks_apart(struct made *m)
{
    made_data(m, "blk.0.attn_q.weight.lora_a", 64, 2, 0, numbers, 64 * 2 * 4);
    made_data(m, "blk.0.attn_q.weight.lora_b", 3, 64, 0, numbers, 64 * 3 * 4);
}

static void make_stray(struct made *m)
{
    pair(m, "blk.0.attn_q.weight", 64, 64, 2);
    made_data(m, "blk.0.attn_q.weight.magnitude", 64, 0, 0, numbers, 64 * 4);
}

static void make_bad_alpha(struct made *m)
{
    pair(m, "blk.0.attn_q.weight", 64, 64, 2);
    made_f32(m, "adapter.lora.alpha", (float)NAN);
}

static void make_nan(struct made *m)
{
    static float bad[128];
    bad[100] = NAN;
    made_data(m, "blk.0.attn_q.weight.lora_a", 64, 2, 0, bad, sizeof(bad));
    made_data(m, "blk.0.attn_q.weight.lora_b", 2, 64, 0, numbers, 64 * 2 * 4);
}

static void broken_adapters_are_refused(void **state)
{
    static const struct adapter_case cases[] = {
        {"without tensors", make_no_pairs, ERR_CORRUPT},
        {"another base", make_other_width, ERR_CORRUPT},
        {"adapts no matrix", make_embedding, ERR_UNSUPPORTED},
        {"adapts no matrix", make_layer_5, ERR_UNSUPPORTED},
        {"adapts no matrix", make_norm, ERR_UNSUPPORTED},
        {"no partner", make_half, ERR_CORRUPT},
        {"another base", make_ranks_apart, ERR_CORRUPT},
        {"neither lora_a nor lora_b", make_stray, ERR_UNSUPPORTED},
        {"adapter.lora.alpha", make_bad_alpha, ERR_CORRUPT},
        {"not finite", make_nan, ERR_CORRUPT},
    };
    struct place *p = *state;
    struct err e;
    char *path = unit_path(p->dir, "adapter.gguf");
    unit_ok(add(p, "tiny/tiny-llama-f32.gguf", "base", NULL, NULL, &e), &e);
    size_t objects = memtier_store_objects(p->store);
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        struct made m = {0};
        made_str(&m, "general.architecture", "llama");
        made_str(&m, "general.type", "adapter");
        made_str(&m, "adapter.type", "lora");
        cases[i].make(&m);
        made_write(&m, path);
        made_done(&m);
        unit_code(unit_add(p->store, path, "x", "base", NULL, &e), cases[i].code, &e);
        unit_says(&e, cases[i].says);
        assert_int_equal(memtier_store_objects(p->store), objects);
    }
    free(path);
}

/* alpha 0 or none: the factor is 1 whatever the rank. */
static void an_adapter_without_alpha_has_factor_one(void **state)
{
    struct place *p = *state;
    struct err e;
    struct made m = {0};
    char *path = unit_path(p->dir, "adapter.gguf");
    unit_ok(add(p, "tiny/tiny-llama-f32.gguf", "base", NULL, NULL, &e), &e);
    made_str(&m, "general.architecture", "llama");
    made_str(&m, "general.type", "adapter");
    made_str(&m, "adapter.type", "lora");
    pair(&m, "blk.0.ffn_up.weight", 64, 192, 2);
    made_write(&m, path);
    made_done(&m);
    unit_ok(unit_add(p->store, path, "x", "base", NULL, &e), &e);
    struct set_meta *s = set_of(p, "x", true);
    const struct set_tensor *a, *b;
    float scale;
    assert_true(set_find_delta(s, 0, "ffn_up.weight", &a, &b, &scale));
    assert_true(scale == 1.0F);
    set_close(&s);
    free(path);
}

/* ---- odd models ---- */

static void replace_norm(struct place *p, const char *file, uint32_t type, const void *data,
                         size_t len)
{
    static const char *const skip[] = {"output_norm", NULL};
    struct made m = {0};
    struct gguf *g;
    struct err e;
    char *from = unit_data("tiny/tiny-llama-q8_0.gguf");
    unit_ok(gguf_open(from, &g, &e), &e);
    made_copy(&m, g, skip);
    made_data(&m, "output_norm.weight", 64, 0, type, data, len);
    made_write(&m, file);
    made_done(&m);
    gguf_close(&g);
    free(from);
}

static void half_precision_norms_become_f32_and_come_back(void **state)
{
    struct place *p = *state;
    struct err e;
    uint16_t half[64];
    char *file = unit_path(p->dir, "half.gguf"), *out = unit_path(p->dir, "out.gguf");
    for (unsigned i = 0; i < 64; i++)
        half[i] = (uint16_t)(0x0001 + i * 0x1c3); /* subnormals to large numbers */
    static const uint32_t types[] = {1, 30};      /* F16, BF16 */
    for (size_t k = 0; k < BASE_COUNT(types); k++) {
        replace_norm(p, file, types[k], half, sizeof(half));
        unit_ok(unit_add(p->store, file, "m", NULL, NULL, &e), &e);
        struct set_meta *s = set_of(p, "m", false);
        assert_int_equal(set_find(s, "output_norm.weight")->type, RDU_F32);
        assert_int_equal(set_find(s, "output_norm.weight")->bytes, 256);
        set_close(&s);
        unit_ok(experts_export(p->store, "m", out, NULL, &e), &e);
        assert_true(unit_files_equal(file, out));
        unit_ok(experts_remove(p->store, "m", &e), &e);
    }
    free(file);
    free(out);
}

static void norms_that_are_not_finite_are_refused(void **state)
{
    struct place *p = *state;
    struct err e;
    float norm[64] = {1};
    char *file = unit_path(p->dir, "nan.gguf");
    norm[63] = INFINITY;
    replace_norm(p, file, 0, norm, sizeof(norm));
    unit_code(unit_add(p->store, file, "m", NULL, NULL, &e), ERR_CORRUPT, &e);
    unit_says(&e, "output_norm.weight");
    assert_int_equal(memtier_store_objects(p->store), 0);
    free(file);
}

static void templates_are_checked_before_anything_is_written(void **state)
{
    struct place *p = *state;
    struct err e;
    char *path = unit_data("tiny/tiny-llama-q8_0.gguf");
    struct expert_add_options opt = {.path = path, .name = "m", .template_source = "{% for %}"};
    enum err_code rc = experts_add(p->store, &opt, NULL, NULL, &e);
    assert_true(rc == ERR_INVALID || rc == ERR_UNSUPPORTED);
    unit_says(&e, "template");
    assert_int_equal(memtier_store_objects(p->store), 0);
    opt.template_source = "{% for m in messages %}{{ m['content'] }}{% endfor %}";
    unit_ok(experts_add(p->store, &opt, NULL, NULL, &e), &e);
    free(path);
}

/* ---- lists and removal ---- */

static const struct expert_info *find_info(const struct expert_info *list, size_t n,
                                           const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i].name, name) == 0)
            return &list[i];
    fail_msg("expert %s is not listed", name);
    return NULL;
}

static void lists_tell_what_there_is(void **state)
{
    struct place *p = *state;
    struct err e;
    struct expert_info *list;
    size_t n;
    const char *const aliases[] = {"bible", "kjv"};
    char *path = unit_data("tiny/lora-psalms.gguf");
    unit_ok(add(p, "tiny/tiny-llama-q4_1.gguf", "base", NULL, NULL, &e), &e);
    struct expert_add_options opt = {.path = path,
                                     .name = "psalms",
                                     .base = "base",
                                     .scale = 0.5,
                                     .description = "writes \"psalms\"\n",
                                     .system = "Sing.",
                                     .aliases = aliases,
                                     .aliases_count = 2,
                                     .licence = "CC0"};
    unit_ok(experts_add(p->store, &opt, NULL, NULL, &e), &e);
    unit_ok(experts_list(p->store, &list, &n, &e), &e);
    assert_int_equal(n, 2);
    const struct expert_info *a = find_info(list, n, "psalms"), *b = find_info(list, n, "base");
    assert_true(a->is_adapter && !b->is_adapter);
    assert_string_equal(a->base, "base");
    assert_null(b->base);
    assert_string_equal(a->description, "writes \"psalms\"\n");
    assert_string_equal(a->system, "Sing.");
    assert_string_equal(a->licence, "CC0");
    assert_int_equal(a->aliases_count, 2);
    assert_string_equal(a->aliases[1], "kjv");
    assert_true(a->scale == 0.5 && b->scale == 1.0);
    assert_string_equal(a->architecture, "llama");
    assert_string_equal(b->types, "Q4_1, Q8_0, F32");
    assert_string_equal(a->types, "F32");
    assert_string_equal(b->licence, "CC0-1.0"); /* from the file */
    assert_int_equal(b->parameters, 131392);
    assert_int_equal(b->context, 256);
    assert_int_equal(a->layers, 2);
    assert_true(a->bytes > 70000 && a->bytes < 100000);
    assert_true(a->created_s > 1600000000);
    experts_list_done(list, n);
    free(path);
}

static void removal_keeps_what_others_use(void **state)
{
    struct place *p = *state;
    struct err e;
    unit_ok(add(p, "tiny/tiny-llama-f32.gguf", "base", NULL, NULL, &e), &e);
    unit_ok(add(p, "tiny/lora-upper.gguf", "one", "base", NULL, &e), &e);
    unit_ok(add(p, "tiny/lora-upper.gguf", "two", "base", NULL, &e), &e);
    assert_int_equal(memtier_store_objects(p->store), 5);
    unit_code(experts_remove(p->store, "base", &e), ERR_BUSY, &e);
    unit_says(&e, "base of 2 others (one, two)");
    unit_ok(experts_remove(p->store, "one", &e), &e);
    assert_int_equal(memtier_store_objects(p->store), 4); /* the adapter's set is still used */
    unit_ok(experts_remove(p->store, "two", &e), &e);
    assert_int_equal(memtier_store_objects(p->store), 2);
    unit_code(experts_remove(p->store, "two", &e), ERR_NOT_FOUND, &e);
    unit_ok(experts_remove(p->store, "base", &e), &e);
    assert_int_equal(memtier_store_objects(p->store), 0);
}

static void removal_wants_the_name_itself(void **state)
{
    struct place *p = *state;
    struct err e;
    const char *const aliases[] = {"nick"};
    char *path = unit_data("tiny/tiny-llama-q4_0.gguf");
    struct expert_add_options opt = {
        .path = path, .name = "m", .aliases = aliases, .aliases_count = 1};
    unit_ok(experts_add(p->store, &opt, NULL, NULL, &e), &e);
    unit_code(experts_remove(p->store, "nick", &e), ERR_NOT_FOUND, &e);
    unit_says(&e, "alias of expert 'm'");
    free(path);
}

static void damaged_records_are_listed_and_can_be_removed(void **state)
{
    struct place *p = *state;
    struct err e;
    struct memtier_writer *w;
    struct expert_info *list;
    size_t n;
    unit_ok(memtier_writer_open(p->store, "expert/broken", 0, &w, &e), &e);
    unit_ok(memtier_writer_commit(&w, "{\"version\":1", 12, &e), &e);
    unit_ok(memtier_writer_open(p->store, "set/0123", 0, &w, &e), &e);
    unit_ok(memtier_writer_commit(&w, "{}\n", 3, &e), &e);
    unit_ok(experts_list(p->store, &list, &n, &e), &e);
    assert_int_equal(n, 1);
    assert_string_equal(list[0].name, "broken");
    assert_string_equal(list[0].types, "unreadable");
    experts_list_done(list, n);
    struct expert_record *r;
    unit_code(expert_record_find(p->store, "broken", &r, &e), ERR_CORRUPT, &e);
    unit_ok(experts_remove(p->store, "broken", &e), &e);
    assert_int_equal(memtier_store_objects(p->store), 0);
}

/* ---- progress, cancelling, killing ---- */

struct watcher {
    size_t calls, stop_at; /* 0 = never */
    bool read, written;
    uint64_t last, total;
};

static bool watch(void *ctx, const char *what, uint64_t done, uint64_t total)
{
    struct watcher *w = ctx;
    w->calls++;
    w->read = w->read || strstr(what, "reading");
    w->written = w->written || (strstr(what, "writing") && strstr(what, "KiB to"));
    w->last = done;
    w->total = total;
    return w->calls != w->stop_at;
}

static void progress_says_size_and_place_and_may_cancel(void **state)
{
    struct place *p = *state;
    struct err e;
    char *path = unit_data("tiny/tiny-qwen3-q8_0.gguf");
    struct expert_add_options opt = {.path = path, .name = "m"};
    struct watcher w = {0};
    const struct progress progress = {watch, &w};
    unit_ok(experts_add(p->store, &opt, &progress, NULL, &e), &e);
    assert_true(w.read && w.written);
    assert_int_equal(w.last, w.total);
    unit_ok(experts_remove(p->store, "m", &e), &e);
    size_t calls = w.calls;
    for (size_t stop = 1; stop < calls; stop++) {
        w = (struct watcher){.stop_at = stop};
        unit_code(experts_add(p->store, &opt, &progress, NULL, &e), ERR_CANCELLED, &e);
        assert_int_equal(memtier_store_objects(p->store), 0);
    }
    free(path);
}

/* Kill the importer at its k-th sign of progress, or from outside after a random time; whatever is
 * left, the store opens, has whole objects only, and takes the same import to the end. */
static bool kill_at(void *ctx, const char *what, uint64_t done, uint64_t total)
{
    size_t *left = ctx;
    if ((*left)-- == 1)
        raise(SIGKILL);
    return true;
}

static void import_and_die(struct place *p, const char *path, size_t calls, uint64_t delay_us)
{
    memtier_store_close(&p->store);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct memtier_store *s = NULL;
        struct expert_add_options opt = {.path = path, .name = "m"};
        const struct progress progress = {kill_at, &calls};
        if (memtier_store_open(p->store_dir, MEMTIER_WRITE, &s, NULL) == ERR_OK)
            (void)!experts_add(s, &opt, &progress, NULL, NULL);
        memtier_store_close(&s);
        _exit(0);
    }
    if (delay_us) {
        usleep((useconds_t)delay_us);
        kill(pid, SIGKILL);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    p->store = unit_store(p->store_dir, MEMTIER_WRITE);
}

static void check_whole(struct place *p)
{
    struct memtier_verify_report rep;
    struct err e;
    for (size_t i = 0; i < memtier_store_objects(p->store); i++) {
        const struct memtier_object *o = memtier_store_object_at(p->store, i);
        if (strncmp(o->name, SET_PREFIX, strlen(SET_PREFIX)) != 0)
            continue;
        struct set_meta *s = NULL;
        unit_ok(set_parse(o, &s, &e), &e);
        set_close(&s);
    }
    unit_ok(memtier_store_verify(p->store, NULL, &rep, &e), &e);
    assert_int_equal(rep.bad, 0);
}

static void killed_imports_leave_a_usable_store(void **state)
{
    struct place *p = *state;
    struct err e;
    struct rng rng;
    rng_init(&rng, unit_seed());
    char *path = unit_data("tiny/tiny-qwen2-f32.gguf"), *out = unit_path(p->dir, "out.gguf");
    unit_ok(add(p, "tiny/tiny-llama-q8_0.gguf", "other", NULL, NULL, &e), &e);
    for (size_t round = 0; round < 60; round++) {
        bool by_count = round < 40;
        import_and_die(p, path, by_count ? round + 1 : 0,
                       by_count ? 0 : 1 + rng_below(&rng, 12000));
        check_whole(p);
        struct expert_record *r = NULL;
        unit_ok(expert_record_find(p->store, "other", &r, &e), &e);
        expert_record_close(&r);
        if (round % 7 != 6)
            continue;
        unit_ok(unit_add(p->store, path, "m", NULL, NULL, &e), &e);
        unit_ok(experts_export(p->store, "m", out, NULL, &e), &e);
        assert_true(unit_files_equal(path, out));
        unit_ok(experts_remove(p->store, "m", &e), &e);
        assert_int_equal(memtier_store_objects(p->store), 2);
    }
    free(path);
    free(out);
}

#define WITH_PLACE(fn) cmocka_unit_test_setup_teardown(fn, place_open, place_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_PLACE(a_model_becomes_segments_in_load_order),
        WITH_PLACE(packed_tensors_hold_the_rows_of_the_file),
        WITH_PLACE(adding_again_changes_nothing),
        WITH_PLACE(a_name_is_not_taken_over),
        WITH_PLACE(bad_options_are_refused_before_the_file_is_read),
        WITH_PLACE(an_adapter_is_one_segment_of_pairs),
        WITH_PLACE(adapters_must_fit_their_base),
        WITH_PLACE(adapters_may_be_stacked_four_high),
        WITH_PLACE(broken_adapters_are_refused),
        WITH_PLACE(an_adapter_without_alpha_has_factor_one),
        WITH_PLACE(half_precision_norms_become_f32_and_come_back),
        WITH_PLACE(norms_that_are_not_finite_are_refused),
        WITH_PLACE(templates_are_checked_before_anything_is_written),
        WITH_PLACE(lists_tell_what_there_is),
        WITH_PLACE(removal_keeps_what_others_use),
        WITH_PLACE(removal_wants_the_name_itself),
        WITH_PLACE(damaged_records_are_listed_and_can_be_removed),
        WITH_PLACE(progress_says_size_and_place_and_may_cancel),
        WITH_PLACE(killed_imports_leave_a_usable_store),
    };
    return cmocka_run_group_tests_name("import", tests, NULL, NULL);
}
