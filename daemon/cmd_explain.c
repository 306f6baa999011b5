/* switchyard explain: the program an expert runs: what the passes did, which launches came out. */
#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/stack.h"

int cmd_explain(int argc, char **argv)
{
    const char *model = NULL, *store = NULL, *exec = NULL, *numerics = NULL;
    bool json = false;
    const struct cli_option options[] = {
        {"model", 'm', CLI_TEXT, &model, "NAME|FILE", "an expert of the store, or a GGUF file"},
        {"store", 0, CLI_TEXT, &store, "DIR",
         "the store (default: store.path of the configuration)"},
        {"exec", 0, CLI_TEXT, &exec, "LEVEL", "interp, unfused, fused (default) or native"},
        {"numerics", 0, CLI_TEXT, &numerics, "int8|f32", "default int8"},
        {"json", 0, CLI_FLAG, &json, NULL, "one JSON object"},
        {0}};
    const struct cli_spec spec = {
        "explain", "--model NAME|FILE",
        "Shows the compiled decoder step of an expert: the graph, what each pass did to it, the fused\n"
        "launches with their buffers, and the scratch they need.",
        "  switchyard explain --model smollm2\n  switchyard explain --model model.gguf --exec unfused --json\n",
        options, 0, 0};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, NULL, &args);
    if (exit != CLI_RUN)
        return exit;
    struct conf c;
    struct stack stack;
    struct expert *ex = NULL;
    struct err e = {0};
    struct cli_bar bar;
    cli_bar_init(&bar);
    struct progress progress = cli_bar_progress(&bar);
    conf_init(&c);
    enum err_code code = conf_load_environment(&c, &e);
    if (code == ERR_OK && store)
        code = conf_set(&c, "store.path", store, &e);
    if (code == ERR_OK && exec)
        code = conf_set(&c, "rdu.exec", exec, &e);
    if (code == ERR_OK && numerics)
        code = conf_set(&c, "rdu.numerics", numerics, &e);
    if (code == ERR_OK)
        code = stack_open_model(&c, model, &progress, &stack, &ex, &e);
    cli_bar_done(&bar);
    if (code == ERR_OK) {
        struct buf text = {0};
        rdu_program_explain(expert_program(ex), json, &text);
        fwrite(text.data, 1, text.len, stdout);
        if (text.len && text.data[text.len - 1] != '\n')
            putchar('\n');
        buf_done(&text);
        stack_close(&stack);
    }
    conf_done(&c);
    return code == ERR_OK ? CLI_DONE : cli_refuse("explain", &e);
}
