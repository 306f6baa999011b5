/* Opening the store for serving: every expert's record, weight sets and adapters shared by name, programs
 * shared by shape. No weights move here; what is resident when is memtier's business. An expert that cannot
 * be opened keeps its error and the others serve. */
#include <stdlib.h>
#include <string.h>

#include "experts/grammar.h"
#include "experts/serve.h"

/* ---- programs by shape ---------------------------------------------------------------------------- */

static enum err_code program_for(struct experts *x, const struct model_shape *shape,
                                 const struct rdu_program **ret, struct err *e)
{
    for (struct shape_program *s = x->programs; s; s = s->next)
        if (model_shape_equal(&s->shape, shape)) {
            *ret = s->program;
            return ERR_OK;
        }
    struct rdu_graph *g = NULL;
    struct rdu_program *program = NULL;
    struct rdu_program_options opt = {.exec = x->opt.exec, .sockets = rdu_node_sockets(x->opt.node)};
    enum err_code code = arch_build(shape, x->opt.numerics, &g, e);
    if (code == ERR_OK)
        code = rdu_program_open(&g, &opt, &program, e);
    if (code == ERR_OK && x->opt.native && x->opt.exec == RDU_EXEC_NATIVE)
        code = rdu_native_submit(x->opt.native, program, e);
    if (code == ERR_OK)
        code = rdu_node_prepare(x->opt.node, program, x->opt.max_step_tokens, x->opt.max_step_tokens, e);
    if (code != ERR_OK) {
        rdu_program_close(&program);
        return code;
    }
    struct shape_program *s = mem_alloc(sizeof(*s));
    *s = (struct shape_program){*shape, program, x->programs};
    x->programs = s;
    *ret = program;
    return ERR_OK;
}

/* ---- a base ------------------------------------------------------------------------------------------ */

static void base_free(struct base *b)
{
    if (b == NULL)
        return;
    uint32_t globals = b->program ? rdu_program_slots(b->program, RDU_SECTION_HEAD) : 0;
    for (uint32_t i = 0; b->chunks && i < globals; i++)
        free(b->chunks[i]);
    free(b->chunks);
    free(b->layers);
    free(b->layer_tensors);
    free(b->globals);
    free(b->global_tensors);
    free(b->seg_address);
    free(b->window);
    free(b->segs);
    template_close(&b->template);
    grammar_vocab_close(&b->vocab_trie);
    tokenizer_close(&b->tokenizer);
    set_close(&b->set);
    free(b->set_name);
    free(b);
}

static enum err_code find_segments(struct experts *x, const struct memtier_object *o, uint32_t **ret,
                                   struct err *e)
{
    uint32_t *segs = mem_array(o->segments_count, sizeof(*segs));
    for (size_t i = 0; i < o->segments_count; i++) {
        segs[i] = memtier_find(x->opt.memtier, o->segments[i].hash);
        if (segs[i] != UINT32_MAX)
            continue;
        free(segs);
        return err_set(e, ERR_CORRUPT, "%s: segment %zu is not in the store's index", o->name, i);
    }
    *ret = segs;
    return ERR_OK;
}

static struct rdu_weight weight_shell(const struct set_tensor *t)
{
    return (struct rdu_weight){.rows = t->rows, .cols = t->cols, .type = t->type, .chunk_rows = t->run_rows};
}

static enum err_code check_slot(const struct base *b, const struct rdu_slot_info *slot,
                                const struct set_tensor *t, struct err *e)
{
    if (t == NULL)
        return err_set(e, ERR_CORRUPT, "%s lacks the tensor %s", b->set_name, slot->name);
    if (t->rows != slot->rows || t->cols != slot->cols)
        return err_set(e, ERR_CORRUPT, "%s: %s is %u x %u, the program wants %u x %u", b->set_name, t->name,
                       t->rows, t->cols, slot->rows, slot->cols);
    return ERR_OK;
}

/* The argument rows without addresses: which tensor fills which slot. */
static enum err_code bind_slots(struct base *b, struct err *e)
{
    const struct rdu_program *p = b->program;
    uint32_t layers = b->set->shape.layers;
    uint32_t per_layer = rdu_program_slots(p, RDU_SECTION_LAYER);
    uint32_t globals = rdu_program_slots(p, RDU_SECTION_HEAD);
    b->layers = mem_array((size_t)layers * per_layer, sizeof(*b->layers));
    b->layer_tensors = mem_array((size_t)layers * per_layer, sizeof(*b->layer_tensors));
    b->globals = mem_array(globals, sizeof(*b->globals));
    b->global_tensors = mem_array(globals, sizeof(*b->global_tensors));
    b->chunks = mem_array(globals, sizeof(*b->chunks));
    b->seg_address = mem_array(b->set->segments, sizeof(*b->seg_address));
    for (uint32_t i = 0; i < layers * per_layer; i++) {
        const struct rdu_slot_info *slot = rdu_program_slot(p, RDU_SECTION_LAYER, i % per_layer);
        const struct set_tensor *t = set_find_slot(b->set, (int32_t)(i / per_layer), slot->name);
        enum err_code code = check_slot(b, slot, t, e);
        if (code != ERR_OK)
            return code;
        b->layer_tensors[i] = t;
        b->layers[i] = weight_shell(t);
    }
    for (uint32_t i = 0; i < globals; i++) {
        const struct rdu_slot_info *slot = rdu_program_slot(p, RDU_SECTION_HEAD, i);
        const struct set_tensor *t = set_find(b->set, slot->name);
        enum err_code code = check_slot(b, slot, t, e);
        if (code != ERR_OK)
            return code;
        b->global_tensors[i] = t;
        b->globals[i] = weight_shell(t);
        if (t->runs > 1) {
            b->chunks[i] = mem_array(t->runs, sizeof(**b->chunks));
            b->globals[i].chunk = b->chunks[i];
        }
    }
    return ERR_OK;
}

static void bind_windows(struct base *b)
{
    const struct model_shape *m = &b->set->shape;
    if (m->window == 0)
        return;
    b->window = mem_array(m->layers, sizeof(*b->window));
    for (uint32_t i = 0; i < m->layers; i++)
        b->window[i] = model_layer_window(m, i);
}

/* The model's own template; a missing or unparsable one is not fatal: completions work without. */
static void open_template(struct base *b)
{
    struct gguf_str source;
    if (gguf_get_str(b->set->gguf, "tokenizer.chat_template", &source, &b->template_err) != ERR_OK) {
        err_set(&b->template_err, ERR_UNSUPPORTED,
                "the model brings no chat template; give the expert one with `template`");
        return;
    }
    if (template_parse(source.data, source.len, &b->template, &b->template_err) != ERR_OK)
        b->template = NULL;
}

static enum err_code base_open(struct experts *x, const char *set_name, struct base **ret, struct err *e)
{
    const struct memtier_object *o = memtier_store_find(x->opt.store, set_name);
    if (o == NULL)
        return err_set(e, ERR_CORRUPT, "the store lacks %s; add the model again", set_name);
    struct base *b = mem_alloc(sizeof(*b));
    b->set_name = mem_strdup(set_name);
    enum err_code code = set_parse(o, &b->set, e);
    if (code == ERR_OK && b->set->is_adapter)
        code = err_set(e, ERR_CORRUPT, "%s is an adapter, not a model", set_name);
    if (code == ERR_OK)
        code = tokenizer_open(b->set->gguf, &b->tokenizer, e);
    if (code == ERR_OK)
        code = find_segments(x, o, &b->segs, e);
    if (code == ERR_OK)
        code = program_for(x, &b->set->shape, &b->program, e);
    if (code == ERR_OK)
        code = bind_slots(b, e);
    if (code == ERR_OK && x->opt.chip)
        node_time_base(b, x->opt.chip, x->opt.exec);
    if (code != ERR_OK) {
        base_free(b);
        return code;
    }
    bind_windows(b);
    open_template(b);
    *ret = b;
    return ERR_OK;
}

static enum err_code base_for(struct experts *x, const char *set_name, struct base **ret, struct err *e)
{
    for (struct base *b = x->bases; b; b = b->next)
        if (strcmp(b->set_name, set_name) == 0) {
            *ret = b;
            return ERR_OK;
        }
    enum err_code code = base_open(x, set_name, ret, e);
    if (code != ERR_OK)
        return code;
    (*ret)->base_idx = x->bases_count++;
    (*ret)->next = x->bases;
    x->bases = *ret;
    return ERR_OK;
}

/* ---- an adapter ------------------------------------------------------------------------------------------ */

static void adapter_free(struct adapter *a)
{
    if (a == NULL)
        return;
    free(a->deltas);
    free(a->a);
    free(a->b);
    set_close(&a->set);
    free(a->set_name);
    free(a);
}

/* The import checked the adapter against its base, but a base can be replaced under its name. */
static bool delta_fits(const struct set_tensor *a, const struct set_tensor *b,
                       const struct rdu_slot_info *slot)
{
    return a->cols == slot->cols && b->rows == slot->rows && a->rows == b->cols;
}

static enum err_code bind_deltas(struct adapter *a, struct err *e)
{
    const struct rdu_program *p = a->base->program;
    uint32_t per_layer = rdu_program_slots(p, RDU_SECTION_LAYER);
    uint32_t count = a->base->set->shape.layers * per_layer;
    a->deltas = mem_array(count, sizeof(*a->deltas));
    a->a = mem_array(count, sizeof(*a->a));
    a->b = mem_array(count, sizeof(*a->b));
    for (uint32_t i = 0; i < count; i++) {
        const struct rdu_slot_info *slot = rdu_program_slot(p, RDU_SECTION_LAYER, i % per_layer);
        float scale;
        if (!set_find_delta(a->set, (int32_t)(i / per_layer), slot->name, &a->a[i], &a->b[i], &scale))
            continue;
        if (!delta_fits(a->a[i], a->b[i], slot))
            return err_set(e, ERR_CORRUPT, "%s does not fit %s at layer %u, %s: add the adapter again over "
                           "this base", a->set_name, a->base->set_name, i / per_layer, slot->name);
        a->deltas[i] = (struct rdu_delta){.a_type = a->a[i]->type, .b_type = a->b[i]->type,
                                          .rank = a->a[i]->rows,
                                          .scale = (float)((double)scale * a->expert_scale)};
    }
    return ERR_OK;
}

static enum err_code adapter_open(struct experts *x, struct base *base, const char *set_name, double scale,
                                  struct adapter **ret, struct err *e)
{
    for (struct adapter *a = x->adapters; a; a = a->next)
        if (a->base == base && a->expert_scale == scale && strcmp(a->set_name, set_name) == 0) {
            *ret = a;
            return ERR_OK;
        }
    const struct memtier_object *o = memtier_store_find(x->opt.store, set_name);
    if (o == NULL)
        return err_set(e, ERR_CORRUPT, "the store lacks %s; add the adapter again", set_name);
    struct adapter *a = mem_alloc(sizeof(*a));
    a->set_name = mem_strdup(set_name);
    a->base = base;
    a->expert_scale = scale;
    uint32_t *segs = NULL;
    enum err_code code = set_parse(o, &a->set, e);
    if (code == ERR_OK && !a->set->is_adapter)
        code = err_set(e, ERR_CORRUPT, "%s is a model, not an adapter", set_name);
    if (code == ERR_OK)
        code = find_segments(x, o, &segs, e);
    if (code == ERR_OK)
        code = bind_deltas(a, e);
    if (code != ERR_OK) {
        free(segs);
        adapter_free(a);
        return code;
    }
    a->seg = segs[0];
    free(segs);
    a->next = x->adapters;
    x->adapters = a;
    *ret = a;
    return ERR_OK;
}

/* ---- an expert ---------------------------------------------------------------------------------------------- */

static void make_load_order(struct experts *x, struct expert *ex)
{
    const struct set_meta *set = ex->base->set;
    ex->load_order = mem_array(set->segments + ex->adapters_count, sizeof(uint32_t));
    for (uint32_t i = 0; i < ex->adapters_count; i++)
        ex->load_order[ex->load_order_count++] = ex->adapters[i]->seg;
    for (uint32_t i = 0; i < set->segments; i++)
        ex->load_order[ex->load_order_count++] = ex->base->segs[i];
    for (size_t i = 0; i < ex->load_order_count; i++) {
        uint64_t bytes = memtier_segment_bytes(x->opt.memtier, ex->load_order[i]);
        ex->bytes += bytes;
        ex->footprint += memtier_footprint(bytes);
    }
}

static enum err_code find_record(struct experts *x, const char *name, struct expert_record **ret,
                                 struct err *e)
{
    char object[512];
    snprintf(object, sizeof(object), EXPERT_PREFIX "%s", name);
    const struct memtier_object *o = memtier_store_find(x->opt.store, object);
    if (o == NULL)
        return err_set(e, ERR_CORRUPT, "the store lacks %s", object);
    return expert_record_parse(o, ret, e);
}

/* An adapter may sit on an adapter: those of the base come first. Opens the full weights at the bottom. */
static enum err_code open_chain(struct experts *x, struct expert *ex, const struct expert_record *r,
                                struct err *e)
{
    if (r->adapter_set == NULL)
        return base_for(x, r->set, &ex->base, e);
    if (r->base == NULL)
        return err_set(e, ERR_CORRUPT, "%s has an adapter but no base", r->name);
    struct expert_record *below = NULL;
    enum err_code code = find_record(x, r->base, &below, e);
    if (code == ERR_OK && ex->adapters_count == SET_ADAPTERS_MAX)
        code = err_set(e, ERR_UNSUPPORTED, "more than %d adapters on top of each other", SET_ADAPTERS_MAX);
    uint32_t depth = ex->adapters_count++; /* counts levels on the way down, so that a loop ends */
    if (code == ERR_OK)
        code = open_chain(x, ex, below, e);
    expert_record_close(&below);
    if (code != ERR_OK)
        return code;
    uint32_t slot = ex->adapters_count - 1 - depth; /* the bottom one is applied first */
    code = adapter_open(x, ex->base, r->adapter_set, r->scale, &ex->adapters[slot], e);
    if (code == ERR_OK)
        ex->deltas[slot] = ex->adapters[slot]->deltas;
    return code;
}

static enum err_code expert_open(struct experts *x, struct expert *ex, struct err *e)
{
    struct expert_record *r = NULL;
    enum err_code code = find_record(x, ex->info.name, &r, e);
    if (code == ERR_OK)
        code = open_chain(x, ex, r, e);
    if (code == ERR_OK && r->template_source)
        code = template_parse(r->template_source, strlen(r->template_source), &ex->template, e);
    expert_record_close(&r);
    if (code == ERR_OK)
        make_load_order(x, ex);
    return code;
}

static void default_options(struct experts_options *o)
{
    o->kv_page_tokens = o->kv_page_tokens ? o->kv_page_tokens : RDU_KV_BLOCK;
    o->max_step_tokens = o->max_step_tokens ? o->max_step_tokens : 512;
    o->max_step_items = o->max_step_items ? o->max_step_items : 32;
    o->max_steps = o->max_steps ? o->max_steps : 4;
}

enum err_code experts_open(const struct experts_options *opt, struct experts **ret, struct err *e)
{
    if (opt->kv_page_tokens % RDU_KV_BLOCK != 0)
        return err_set_param(e, ERR_INVALID, "kv.page_tokens", "%u is no multiple of %d",
                             opt->kv_page_tokens, RDU_KV_BLOCK);
    struct experts *x = mem_alloc(sizeof(*x));
    x->opt = *opt;
    default_options(&x->opt);
    struct expert_info *infos = NULL;
    enum err_code code = experts_list(opt->store, &infos, &x->count, e);
    if (code != ERR_OK) {
        x->count = 0;
        experts_close(&x);
        return code;
    }
    x->experts = mem_array(x->count, sizeof(*x->experts));
    for (size_t i = 0; i < x->count; i++) {
        struct expert *ex = &x->experts[i];
        ex->info = infos[i]; /* strings move over */
        ex->expert_idx = (uint32_t)i;
        if (expert_open(x, ex, &ex->error) != ERR_OK)
            ex->base = NULL;
    }
    free(infos);
    if (opt->kv_type == EXPERT_KV_Q8_0 && opt->exec == RDU_EXEC_INTERP) {
        experts_close(&x);
        return err_set_param(e, ERR_UNSUPPORTED, "kv.type", "q8_0 KV is stored by kernels: rdu.exec interp has "
                             "none, use fused or unfused, or f16 or f32 KV");
    }
    x->kv = kv_open(x->opt.memtier, x->opt.kv_page_tokens);
    code = steps_open(x, e);
    if (code != ERR_OK) {
        experts_close(&x);
        return code;
    }
    *ret = x;
    return ERR_OK;
}

void experts_close(struct experts **xp)
{
    struct experts *x = *xp;
    if (x == NULL)
        return;
    steps_close(x);
    kv_close(&x->kv);
    for (size_t i = 0; i < x->count; i++) {
        free(x->experts[i].load_order);
        template_close(&x->experts[i].template);
    }
    if (x->experts) {
        /* The infos were taken over one by one; give them back as the list they were. */
        struct expert_info *infos = mem_array(x->count, sizeof(*infos));
        for (size_t i = 0; i < x->count; i++)
            infos[i] = x->experts[i].info;
        experts_list_done(infos, x->count);
    }
    for (struct adapter *a = x->adapters, *next; a; a = next) {
        next = a->next;
        adapter_free(a);
    }
    for (struct base *b = x->bases, *next; b; b = next) {
        next = b->next;
        base_free(b);
    }
    for (struct shape_program *s = x->programs, *next; s; s = next) {
        next = s->next;
        rdu_program_close(&s->program);
        free(s);
    }
    free(x->experts);
    free(x);
    *xp = NULL;
}

/* ---- accessors -------------------------------------------------------------------------------------------------- */

size_t experts_count(const struct experts *x)
{
    return x->count;
}

struct expert *experts_at(struct experts *x, size_t expert_idx)
{
    return &x->experts[expert_idx];
}

struct expert *experts_find(struct experts *x, const char *name)
{
    for (size_t i = 0; i < x->count; i++)
        if (strcmp(x->experts[i].info.name, name) == 0)
            return &x->experts[i];
    for (size_t i = 0; i < x->count; i++)
        for (size_t k = 0; k < x->experts[i].info.aliases_count; k++)
            if (strcmp(x->experts[i].info.aliases[k], name) == 0)
                return &x->experts[i];
    return NULL;
}

const struct expert_info *expert_info(const struct expert *ex)
{
    return &ex->info;
}

uint32_t expert_index(const struct expert *ex)
{
    return ex->expert_idx;
}

uint32_t expert_base_index(const struct expert *ex)
{
    return ex->base->base_idx;
}

const struct tokenizer *expert_tokenizer(const struct expert *ex)
{
    return ex->base->tokenizer;
}

const struct chat_template *expert_template(const struct expert *ex)
{
    return ex->template ? ex->template : ex->base->template;
}

uint32_t expert_context(const struct expert *ex)
{
    return ex->base->set->shape.context;
}

bool expert_ok(const struct expert *ex, struct err *e)
{
    if (ex->base)
        return true;
    if (e)
        *e = ex->error;
    return false;
}

const uint32_t *expert_segments(const struct expert *ex, size_t *ret_count)
{
    *ret_count = ex->load_order_count;
    return ex->load_order;
}

size_t expert_adapter_segments(const struct expert *ex)
{
    return ex->adapters_count;
}

uint64_t expert_bytes(const struct expert *ex)
{
    return ex->bytes;
}

uint64_t expert_footprint(const struct expert *ex)
{
    return ex->footprint;
}

const struct rdu_program *expert_program(const struct expert *ex)
{
    return ex->base->program;
}
