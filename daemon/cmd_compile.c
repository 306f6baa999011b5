/* switchyard compile: the native unit of an expert's program, made ahead of time into the cache
 * that serve looks into: a server that starts with it runs no compiler. */
#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/stack.h"

static enum err_code compile_it(const struct conf *c, const struct stack *s,
                                const struct expert *ex, struct err *e)
{
    struct rdu_native_stats stats;
    if (s->native == NULL)
        return err_set(e, s->native_said.code, "%s", s->native_said.msg);
    rdu_native_wait(s->native);
    rdu_native_stats(s->native, &stats);
    if (!rdu_program_is_native(expert_program(ex)))
        return err_set(e, ERR_UNSUPPORTED,
                       "%s; the fused form gives the same results without a compiler",
                       stats.last_error[0] ? stats.last_error : "nothing was compiled");
    printf("%s: %llu compiled in %.2f s, %llu taken from the cache (compiler %s)\n",
           expert_info(ex)->name, (unsigned long long)stats.compiled,
           (double)stats.compile_ns * 1e-9, (unsigned long long)stats.cache_hits,
           rdu_native_compiler(s->native) ? rdu_native_compiler(s->native) : c->rdu_compiler);
    if (stats.not_stored > 0)
        return err_set(e, ERR_IO, "compiled, but not kept: %s", stats.last_error);
    return ERR_OK;
}

int cmd_compile(int argc, char **argv)
{
    const char *model = NULL, *store = NULL, *numerics = NULL, *cache = NULL, *compiler = NULL;
    const struct cli_option options[] = {
        {"model", 'm', CLI_TEXT, &model, "NAME|FILE", "an expert of the store, or a GGUF file"},
        {"store", 0, CLI_TEXT, &store, "DIR",
         "the store (default: store.path of the configuration)"},
        {"numerics", 0, CLI_TEXT, &numerics, "int8|f32", "default int8"},
        {"cache", 0, CLI_TEXT, &cache, "DIR", "where objects are kept (default: rdu.cache)"},
        {"compiler", 0, CLI_TEXT, &compiler, "CC", "C compiler (default: rdu.compiler, cc)"},
        {0}};
    const struct cli_spec spec = {
        "compile",
        "--model NAME|FILE",
        "Emits the decoder step of an expert as C, compiles it and puts the object into the cache, "
        "so that\n"
        "'serve --exec native' loads it and starts no compiler. Experts of one shape share one "
        "object.",
        "  switchyard compile --model smollm2\n  switchyard serve --exec native\n",
        options,
        0,
        0};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, NULL, &args);
    if (exit != CLI_RUN)
        return exit;
    const struct {
        const char *key, *value;
    } set[] = {{"rdu.exec", "native"},
               {"store.path", store},
               {"rdu.numerics", numerics},
               {"rdu.cache", cache},
               {"rdu.compiler", compiler}};
    struct conf c;
    struct stack stack;
    struct expert *ex = NULL;
    struct err e = {0};
    struct cli_bar bar;
    cli_bar_init(&bar);
    struct progress progress = cli_bar_progress(&bar);
    conf_init(&c);
    enum err_code code = conf_load_environment(&c, &e);
    for (size_t i = 0; i < BASE_COUNT(set) && code == ERR_OK; i++)
        if (set[i].value)
            code = conf_set(&c, set[i].key, set[i].value, &e);
    if (code == ERR_OK)
        code = stack_open_model(&c, model, &progress, &stack, &ex, &e);
    cli_bar_done(&bar);
    if (code == ERR_OK) {
        code = compile_it(&c, &stack, ex, &e);
        stack_close(&stack);
    }
    conf_done(&c);
    return code == ERR_OK ? CLI_DONE : cli_refuse("compile", &e);
}
