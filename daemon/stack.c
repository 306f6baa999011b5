/* Opening the rooms below the daemon in their order, and closing them in the reverse. */
#include <ctype.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/engine.h"
#include "daemon/stack.h"

static enum memtier_loader loader_of(enum conf_loader l)
{
    switch (l) {
    case CONF_LOADER_IO_URING:
        return MEMTIER_LOADER_URING;
    case CONF_LOADER_PREAD:
        return MEMTIER_LOADER_PREAD;
    case CONF_LOADER_BUFFERED:
        return MEMTIER_LOADER_BUFFERED;
    case CONF_LOADER_AUTO:
        break;
    }
    return MEMTIER_LOADER_AUTO;
}

static enum memtier_verify verify_of(enum conf_verify v)
{
    switch (v) {
    case CONF_VERIFY_ALWAYS:
        return MEMTIER_VERIFY_ALWAYS;
    case CONF_VERIFY_NEVER:
        return MEMTIER_VERIFY_NEVER;
    case CONF_VERIFY_FIRST:
        break;
    }
    return MEMTIER_VERIFY_FIRST;
}

static enum rdu_exec exec_of(enum conf_exec x)
{
    switch (x) {
    case CONF_EXEC_INTERP:
        return RDU_EXEC_INTERP;
    case CONF_EXEC_UNFUSED:
        return RDU_EXEC_UNFUSED;
    case CONF_EXEC_NATIVE:
        return RDU_EXEC_NATIVE;
    case CONF_EXEC_FUSED:
        break;
    }
    return RDU_EXEC_FUSED;
}

enum expert_kv_type stack_kv_type(const struct conf *c)
{
    switch (c->kv_type) {
    case CONF_KV_Q8_0:
        return EXPERT_KV_Q8_0;
    case CONF_KV_F32:
        return EXPERT_KV_F32;
    case CONF_KV_F16:
        break;
    }
    return EXPERT_KV_F16;
}

uint64_t stack_hbm_automatic(uint64_t store_bytes, uint64_t kv_bytes)
{
    uint64_t all = store_bytes + kv_bytes + 64 * BASE_MIB;
    return BASE_MIN(all, memory_bytes_usable() / 2) & ~(uint64_t)(BASE_MIB - 1);
}

static enum err_code resolve_hbm(const struct conf *c, struct stack *s, enum expert_kv_type kv, struct err *e)
{
    uint64_t kv_bytes = 0;
    s->hbm_bytes = c->tiers_hbm_bytes;
    if (s->hbm_bytes)
        return ERR_OK;
    enum err_code code = experts_kv_token_bytes(s->store, kv, &kv_bytes, e);
    s->hbm_bytes = stack_hbm_automatic(memtier_store_bytes(s->store), kv_bytes * STACK_KV_TOKENS);
    return code;
}

/* Only a daemon spills: others may have the store open beside it. */
static enum err_code open_memory(const struct conf *c, struct stack *s, bool spill, struct err *e)
{
    struct memtier_options m = {.hbm_bytes = s->hbm_bytes, .ddr_bytes = c->tiers_ddr_bytes,
                                .loader = loader_of(c->tiers_loader), .verify = verify_of(c->tiers_verify),
                                .policy = c->tiers_policy, .spill_bytes = spill ? c->kv_spill_bytes : 0, .measure = s->measure};
    return memtier_open(&m, s->store, &s->memtier, e);
}

static enum err_code open_node(const struct conf *c, struct stack *s, struct err *e)
{
    uint32_t threads = c->rdu_threads ? c->rdu_threads : cpu_count_usable();
    struct rdu_node_options n = {.sockets = c->rdu_sockets,
                                 .threads = BASE_MIN(threads, c->rdu_sockets)};
    if (c->rdu_threads > c->rdu_sockets)
        n.threads = c->rdu_threads; /* refused with the reason, not silently changed */
    return rdu_node_open(&n, &s->node, e);
}

static enum err_code open_experts(const struct conf *c, struct stack *s, enum expert_kv_type kv,
                                  struct err *e)
{
    uint32_t sequences = c->sched_max_sequences;
    struct experts_options x = {
        .store = s->store,
        .memtier = s->memtier,
        .node = s->node,
        .numerics = c->rdu_numerics == CONF_NUMERICS_F32 ? RDU_NUMERICS_F32 : RDU_NUMERICS_INT8,
        .exec = exec_of(c->rdu_exec),
        .kv_type = kv,
        .kv_page_tokens = c->kv_page_tokens,
        .native = s->native,
        .chip = s->chip,
        .max_step_items = sequences,
        .max_step_tokens =
            c->sched_prefill_chunk + sequences + ENGINE_DRAFT_LANES * SEQUENCE_DRAFT_MAX};
    return experts_open(&x, &s->experts, e);
}

static enum err_code open_chip(const struct conf *c, struct stack *s, struct err *e)
{
    s->chip = mem_alloc(sizeof(*s->chip));
    enum err_code code = rdu_chip_load(c->rdu_chip, s->chip, e);
    return code == ERR_OK ? code : err_wrap(e, "rdu.chip");
}

static char *cache_path(const struct conf *c)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (c->rdu_cache[0])
        return mem_strdup(c->rdu_cache);
    if (cache && cache[0] == '/')
        return mem_format("%s/switchyard/native", cache);
    if (home && home[0] == '/')
        return mem_format("%s/.cache/switchyard/native", home);
    return mem_strdup("/var/cache/switchyard/native");
}

/* Compiled code is never needed: without a place for it the fused form serves, and says why. */
static void open_native(const struct conf *c, struct stack *s)
{
    if (c->rdu_exec != CONF_EXEC_NATIVE)
        return;
    char *dir = cache_path(c);
    struct rdu_native_options o = {.compiler = c->rdu_compiler, .dir = dir};
    if (rdu_native_open(&o, &s->native, &s->native_said) != ERR_OK)
        err_wrap(&s->native_said, "no native code, fused serves");
    free(dir);
}

enum err_code stack_open(const struct conf *c, enum memtier_access access, struct stack *ret, struct err *e)
{
    struct stack s = {.temporary = ret->temporary, .measure = access == MEMTIER_SERVE};
    enum expert_kv_type kv = stack_kv_type(c);
    enum err_code code = memtier_store_open(c->store_path, access, &s.store, e);
    if (code == ERR_OK)
        code = resolve_hbm(c, &s, kv, e);
    if (code == ERR_OK)
        code = open_memory(c, &s, access == MEMTIER_SERVE, e);
    if (code == ERR_OK)
        code = open_node(c, &s, e);
    if (code == ERR_OK)
        code = open_chip(c, &s, e);
    if (code == ERR_OK)
        open_native(c, &s);
    if (code == ERR_OK)
        code = open_experts(c, &s, kv, e);
    if (code != ERR_OK) {
        stack_close(&s);
        ret->temporary = NULL;
        return code;
    }
    *ret = s;
    return ERR_OK;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void stack_close(struct stack *s)
{
    rdu_native_close(&s->native); /* first: it fills programs that the experts own */
    experts_close(&s->experts);
    rdu_node_close(&s->node);
    free(s->chip);
    s->chip = NULL;
    memtier_close(&s->memtier);
    memtier_store_close(&s->store);
    if (s->temporary)
        nftw(s->temporary, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(s->temporary);
    s->temporary = NULL;
}

/* ---- importing ------------------------------------------------------------------------------------------ */

/* "SmolLM2 135M Instruct" -> "smollm2-135m-instruct": what people type into `model`. */
static char *api_name(const char *text, size_t len)
{
    struct buf b = {0};
    for (size_t i = 0; i < len; i++) {
        unsigned char ch = (unsigned char)text[i];
        if (isalnum(ch) || ch == '.' || ch == '_')
            buf_printf(&b, "%c", tolower(ch));
        else if (b.len && b.data[b.len - 1] != '-')
            buf_puts(&b, "-");
    }
    while (b.len && b.data[b.len - 1] == '-')
        b.data[--b.len] = 0;
    if (b.len == 0)
        buf_puts(&b, "model");
    return b.data;
}

/* From the file's name, without the ending. */
static char *file_name(const char *path)
{
    const char *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    const char *dot = strstr(base, ".gguf");
    return api_name(base, dot ? (size_t)(dot - base) : strlen(base));
}

static enum err_code model_name(const char *path, char **ret, struct err *e)
{
    struct gguf *g = NULL;
    struct gguf_str name;
    enum err_code code = gguf_open(path, &g, e);
    if (code != ERR_OK)
        return code;
    if (gguf_has(g, "general.name") && gguf_get_str(g, "general.name", &name, NULL) == ERR_OK && name.len)
        *ret = api_name(name.data, name.len);
    else
        *ret = file_name(path);
    gguf_close(&g);
    return ERR_OK;
}

static enum err_code add_as(struct memtier_store *store, const char *path, const char *name,
                            const struct progress *p, struct err *e)
{
    struct expert_add_options add = {.path = path, .name = name};
    struct expert_add_report report;
    return experts_add(store, &add, p, &report, e);
}

/* Quantisations of one model have one name in their headers: the second goes by its file's name. */
static enum err_code add_under_some_name(struct memtier_store *store, const char *path, char **name,
                                         const struct progress *p, struct err *e)
{
    enum err_code code = add_as(store, path, *name, p, e);
    char *other = file_name(path);
    if (code != ERR_EXISTS || strcmp(other, *name) == 0) {
        free(other);
        return code;
    }
    free(*name);
    *name = other;
    return add_as(store, path, *name, p, e);
}

enum err_code stack_import(const struct conf *c, const char *gguf_path, const struct progress *p,
                           char **ret_name, struct err *e)
{
    struct memtier_store *store = NULL;
    char *name = NULL;
    enum err_code code = model_name(gguf_path, &name, e);
    if (code == ERR_OK)
        code = memtier_store_open(c->store_path, MEMTIER_WRITE, &store, e);
    if (code == ERR_OK)
        code = add_under_some_name(store, gguf_path, &name, p, e);
    memtier_store_close(&store);
    if (code != ERR_OK) {
        free(name);
        return code;
    }
    *ret_name = name;
    return ERR_OK;
}

static enum err_code temporary_store(struct conf *c, struct stack *s, struct err *e)
{
    const char *dir = getenv("TMPDIR");
    char *path = mem_format("%s/switchyard-XXXXXX", dir && *dir ? dir : "/tmp");
    if (mkdtemp(path) == NULL) {
        err_set_errno(e, ERR_IO, "cannot make a temporary store at %s", path);
        free(path);
        return ERR_IO;
    }
    s->temporary = path;
    free(c->store_path);
    c->store_path = mem_strdup(path);
    return ERR_OK;
}

enum err_code stack_open_model(struct conf *c, const char *model, const struct progress *p, struct stack *ret,
                               struct expert **ret_expert, struct err *e)
{
    struct stat st;
    char *name = NULL;
    *ret = (struct stack){0};
    enum err_code code = ERR_OK;
    bool is_file = model && stat(model, &st) == 0 && S_ISREG(st.st_mode);
    if (is_file) {
        code = temporary_store(c, ret, e);
        if (code == ERR_OK)
            code = stack_import(c, model, p, &name, e);
    }
    if (code == ERR_OK)
        code = stack_open(c, MEMTIER_READ, ret, e);
    if (code != ERR_OK) {
        free(name);
        stack_close(ret);
        return code;
    }
    const char *wanted = name ? name : model;
    *ret_expert = wanted ? experts_find(ret->experts, wanted)
                         : (experts_count(ret->experts) ? experts_at(ret->experts, 0) : NULL);
    if (*ret_expert == NULL)
        code = err_set(e, ERR_MODEL, "%s is neither a file nor an expert of the store %s; see 'switchyard "
                       "experts list'", wanted ? wanted : "the store is empty:", c->store_path);
    else if (!expert_ok(*ret_expert, e))
        code = e ? e->code : ERR_INTERNAL;
    free(name);
    if (code != ERR_OK)
        stack_close(ret);
    return code;
}
