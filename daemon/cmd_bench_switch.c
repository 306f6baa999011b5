/* switchyard bench switch | load | variants: what changing experts costs. */
#include <stdlib.h>
#include <string.h>

#include "daemon/bench_switch.h"
#include "daemon/commands.h"
#include "experts/experts.h"

static const char about_switch[] = "Times the first token of a request for an expert that the "
                                   "request before did not use (a switch), and of\n"
                                   "the same request again (resident). In this process it runs the "
                                   "daemon's engine over the store's full\n"
                                   "models, or over variants that it makes of one file; with --url "
                                   "it asks any OpenAI-style server.\n\n"
                                   "--from says where the weights are when the request comes: hbm "
                                   "(only other arguments), ddr or nvme. From\n"
                                   "nvme each switch is preceded, in the same run and alternating, "
                                   "by a load alone and by a plain direct read\n"
                                   "of as many bytes of another expert's file, which no cache of "
                                   "this machine has: the device's own rate.";
static const char about_load[] = "Times loads of whole experts without running them, alternating "
                                 "with a plain direct read of as many bytes\n"
                                 "of another expert's file (the device's own rate; of fio too "
                                 "where it is installed), or from ddr with a\n"
                                 "memcpy of as many bytes.";
static const char examples_switch[] =
    "  switchyard bench switch --model model.gguf --experts 12 --from nvme --requests 48\n"
    "  switchyard bench switch --store DIR --from hbm --pattern zipf:1.1 --json\n"
    "  switchyard bench switch --url http://127.0.0.1:8080 --requests 40\n";
static const char examples_load[] =
    "  switchyard bench load --model model.gguf --experts 12 --pattern shuffle --from nvme "
    "--requests 48\n"
    "  switchyard bench load --model model.gguf --experts 12 --from ddr --json\n";

/* Where the weights are at first: given, or what fits the way of measuring. */
static int check(struct bench_switch *b)
{
    static const char *const tiers[] = {"hbm", "ddr", "nvme"};
    bool load = strcmp(b->which, "load") == 0, known = b->from == NULL;
    for (size_t i = 0; b->from && i < BASE_COUNT(tiers); i++)
        known |= strcmp(b->from, tiers[i]) == 0;
    if (!known)
        return cli_wrong("bench", "--from is hbm, ddr or nvme, not '%s'", b->from);
    if (load && b->url)
        return cli_wrong("bench load",
                         "a server's loads cannot be seen from outside: use bench switch");
    if (load && b->from && strcmp(b->from, "hbm") == 0)
        return cli_wrong("bench load", "there is nothing to load from hbm: use --from ddr or nvme");
    if (b->url && b->from && strcmp(b->from, "hbm") != 0 && b->admin == NULL)
        return cli_wrong(
            "bench switch",
            "to have a server's experts in %s before each request, give the "
            "address of its /admin with --admin; without --from they are where the server "
            "has them",
            b->from);
    if (b->from == NULL)
        b->from = b->url ? "as-is" : "nvme";
    return CLI_RUN;
}

int cmd_bench_switch(int argc, char **argv)
{
    struct bench_switch b = {.which = argv[0],
                             .pattern = "shuffle",
                             .experts = 12,
                             .requests = 48,
                             .prompt = 32,
                             .tokens = 1,
                             .seed = 1};
    bool load = strcmp(argv[0], "load") == 0;
    const struct cli_option options[] = {
        {"model", 'm', CLI_LIST, &b.models, "FILE|NAME",
         "a GGUF file to make variants of, or names of experts; default: the store's full models"},
        {"store", 0, CLI_TEXT, &b.store, "DIR",
         "the store; with a FILE the variants are kept there"},
        {"url", 0, CLI_TEXT, &b.url, "URL", "ask this server instead of running an engine here"},
        {"admin", 0, CLI_TEXT, &b.admin, "URL",
         "with --url: unload through this server's /admin before each switch"},
        {"key", 0, CLI_TEXT, &b.key, "KEY", "its API key"},
        {"experts", 'e', CLI_UINT, &b.experts, "N", "experts to switch between (default 12)", 1,
         100000},
        {"pattern", 0, CLI_TEXT, &b.pattern, "P", "rr, shuffle (default), zipf:S or trace:FILE"},
        {"from", 'f', CLI_TEXT, &b.from, "TIER",
         "hbm, ddr or nvme (default; of a server: where it has them)"},
        {"requests", 'r', CLI_UINT, &b.requests, "N", "pairs to measure (default 48)", 1, 1000000},
        {"prompt", 'p', CLI_UINT, &b.prompt, "N", "prompt tokens (default 32)", 1, 100000},
        {"hbm", 0, CLI_SIZE, &b.hbm, "SIZE", "tiers.hbm (default: room for all experts)"},
        {"threads", 't', CLI_UINT, &b.threads, "N", "host threads (default: all usable)", 1, 1024},
        {"loader", 0, CLI_TEXT, &b.loader, "L",
         "tiers.loader: auto (default), io_uring, pread or buffered"},
        {"verify", 0, CLI_TEXT, &b.verify, "V", "tiers.verify: first (default), always or never"},
        {"fio", 0, CLI_TEXT, &b.fio, "PATH",
         "fio to compare with (default: where it is installed), or none"},
        {"seed", 's', CLI_UINT, &b.seed, "N", "of variants and order (default 1)", 0, 1e15},
        {"live", 0, CLI_FLAG, &b.live, NULL, "print every pair to stderr as it is measured"},
        {"json", 0, CLI_FLAG, &b.json, NULL, "one JSON object"},
        {0}};
    const struct cli_spec spec = {load ? "bench load" : "bench switch",
                                  "[--model FILE | --url URL]",
                                  load ? about_load : about_switch,
                                  load ? examples_load : examples_switch,
                                  options,
                                  0,
                                  0};
    struct err e = {0};
    int exit = cli_parse(argc, argv, &spec, NULL, NULL);
    if (exit == CLI_RUN)
        exit = check(&b);
    if (exit == CLI_RUN) {
        enum err_code code = b.url ? bench_run_remote(&b, &e) : bench_run_local(&b, &e);
        exit = code == ERR_OK ? CLI_DONE : cli_refuse(spec.command, &e);
        if (code == ERR_OK)
            bench_print(&b);
    }
    bench_figures_done(&b.figures);
    cli_list_done(&b.models);
    return exit;
}

int cmd_bench_variants(int argc, char **argv)
{
    const char *file = NULL, *out = NULL;
    uint64_t count = 12, seed = 1;
    const struct cli_option options[] = {
        {"out", 'o', CLI_TEXT, &out, "DIR", "where to write them (required)"},
        {"count", 'n', CLI_UINT, &count, "N", "how many (default 12)", 1, 100000},
        {"seed", 's', CLI_UINT, &seed, "N", "of the first; the next has the next (default 1)", 0,
         1e15},
        {0}};
    const struct cli_spec spec = {
        "bench variants",
        "FILE --out DIR",
        "Writes variants of a GGUF model or adapter: one low bit in every 256 bytes of its tensors "
        "differs, so\n"
        "that they behave alike and share nothing in a store. For benches and soaks that need many "
        "experts.",
        "  switchyard bench variants model.gguf --count 12 --out /tmp/experts\n",
        options,
        1,
        1};
    struct err e = {0};
    int exit = cli_parse(argc, argv, &spec, &file, &(size_t){0});
    if (exit != CLI_RUN)
        return exit;
    if (out == NULL)
        return cli_wrong("bench variants", "--out is missing: where should they be written?");
    enum err_code code = file_mkdirs(out, &e);
    const char *slash = strrchr(file, '/');
    for (uint64_t i = 0; i < count && code == ERR_OK; i++) {
        char *path = mem_format("%s/%04llu-%s", out, (unsigned long long)(seed + i),
                                slash ? slash + 1 : file);
        code = experts_vary(file, path, seed + i, &e);
        if (code == ERR_OK)
            puts(path);
        free(path);
    }
    return code == ERR_OK ? CLI_DONE : cli_refuse("bench variants", &e);
}
