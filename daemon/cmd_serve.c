/* switchyard serve: configuration < environment < flags, then the server until a signal. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef SWITCHYARD_SYSTEMD
#include <systemd/sd-daemon.h>
#endif

#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/http.h"
#include "daemon/log.h"
#include "daemon/server.h"

static const char about[] =
    "Answers the OpenAI API over HTTP: /v1/chat/completions, /v1/completions, /v1/models.\n"
    "The model 'auto' lets the router choose an expert for each prompt.\n\n"
    "Without a configuration it serves what is in the store. With --model it imports that\n"
    "file into the store first (once: a file that is there already is not read again into it)\n"
    "and serves it under the name its header gives, or the file's name if that is taken.\n\n"
    "Settings come from the file, over it from the environment (SWITCHYARD_SERVER_PORT for\n"
    "server.port and so on), over it from these options. 'switchyard check' shows the result.\n"
    "SIGTERM and SIGINT refuse new requests, let running ones finish for server.drain_s\n"
    "seconds, and exit. Log lines (JSON) go to stdout, what is for people to stderr.";

static const char examples[] =
    "  switchyard serve --model SmolLM2-135M-Instruct.Q4_1.gguf\n"
    "  switchyard serve --config switchyard.yaml --port 9000\n"
    "  SWITCHYARD_TIERS_HBM=2GiB switchyard serve --store /var/lib/switchyard/store";

/* ---- signals -------------------------------------------------------------------------------- */

static void block_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, set, NULL);
}

static void tell_manager(const char *state)
{
#ifdef SWITCHYARD_SYSTEMD
    sd_notify(0, state);
#else
    (void)state;
#endif
}

/* What became of native code since the last look: each event once. */
static void watch_native(struct server *s, struct rdu_native_stats *last)
{
    struct rdu_native_stats now;
    if (s->stack.native_said.code != ERR_OK) {
        logger_event(s->log, LOG_WARN, "native", "%s", s->stack.native_said.msg);
        s->stack.native_said = (struct err){0};
    }
    if (s->stack.native == NULL)
        return;
    rdu_native_stats(s->stack.native, &now);
    if (now.failed + now.rejected + now.not_stored >
        last->failed + last->rejected + last->not_stored)
        logger_event(s->log, LOG_WARN, "native", "%s%s", now.last_error,
                     now.failed > last->failed ? "; the fused form serves" : "");
    if (now.compiled + now.cache_hits > last->compiled + last->cache_hits)
        logger_event(s->log, LOG_INFO, "native",
                     "%llu units compiled in %.2f s, %llu from the cache",
                     (unsigned long long)now.compiled, (double)now.compile_ns * 1e-9,
                     (unsigned long long)now.cache_hits);
    *last = now;
}

/* The service manager hears that we are ready once the generalist is in memory, and then regularly
 * that the main thread lives. */
static void watch(struct server *s, bool *told, struct rdu_native_stats *native)
{
    watch_native(s, native);
    if (!*told && server_ready(s)) {
        tell_manager("READY=1");
        logger_event(s->log, LOG_INFO, "ready", "the generalist and what is held are in memory");
        *told = true;
    }
    if (*told)
        tell_manager("WATCHDOG=1");
}

static void wait_for_end(struct server *s, const sigset_t *set)
{
    bool told = false;
    struct rdu_native_stats native = {0};
    for (;;) {
        const struct timespec period = {.tv_sec = told ? 1 : 0, .tv_nsec = told ? 0 : 20000000};
        watch(s, &told, &native);
        int signal_no = sigtimedwait(set, NULL, &period);
        if (signal_no == SIGTERM || signal_no == SIGINT)
            return;
        if (signal_no == SIGHUP)
            logger_event(s->log, LOG_WARN, "reload",
                         "the configuration is read at start only; "
                         "restart the server to apply changes");
    }
}

/* A second SIGTERM or SIGINT while draining ends the patience. */
static void *second_signal(void *arg)
{
    const sigset_t *set = arg;
    int signal_no;
    do {
        if (sigwait(set, &signal_no) != 0)
            return NULL;
    } while (signal_no == SIGHUP);
    _exit(CLI_DONE);
}

static void drain(struct server *s, sigset_t *set)
{
    pthread_t impatient;
    uint64_t patience_ns = (uint64_t)(s->conf->server_drain_s * 1e9);
    struct err e;
    atomic_store(&s->draining, true);
    tell_manager("STOPPING=1");
    logger_event(s->log, LOG_INFO, "draining", "new requests are refused; running ones have %.0f s",
                 s->conf->server_drain_s);
    if (thread_start(&impatient, "signals", second_signal, set, &e) == ERR_OK)
        pthread_detach(impatient);
    engine_drain(s->engine);
    http_stop(s->http, clock_ns() + patience_ns);
}

static int serve(const struct conf *c, const char *model)
{
    struct server s;
    struct err e = {0};
    sigset_t set;
    block_signals(&set);
    if (server_open(c, model, &s, &e) != ERR_OK)
        return cli_refuse("serve", &e);
    wait_for_end(&s, &set);
    drain(&s, &set);
    server_close(&s);
    return CLI_DONE;
}

int cmd_serve(int argc, char **argv)
{
    const char *config = NULL, *model = "";
    struct cli_setting flags[] = {
        {"store.path", NULL},   {"server.host", NULL}, {"server.port", NULL}, {"rdu.sockets", NULL},
        {"rdu.threads", NULL},  {"tiers.hbm", NULL},   {"tiers.ddr", NULL},   {"rdu.exec", NULL},
        {"rdu.numerics", NULL}, {"router.head", NULL},
    };
    const struct cli_option options[] = {
        {"config", 'c', CLI_TEXT, &config, "FILE", "YAML configuration"},
        {"model", 'm', CLI_TEXT, &model, "FILE", "GGUF model to import if it is new, and serve"},
        {"store", 0, CLI_TEXT, &flags[0].value, "DIR", "where experts are kept"},
        {"host", 0, CLI_TEXT, &flags[1].value, "HOST", "address to listen on (127.0.0.1)"},
        {"port", 'p', CLI_TEXT, &flags[2].value, "PORT", "port (8080); 0 = any free one"},
        {"sockets", 0, CLI_TEXT, &flags[3].value, "N", "sockets of the node (8)"},
        {"threads", 't', CLI_TEXT, &flags[4].value, "N", "threads that play them (automatic)"},
        {"hbm", 0, CLI_TEXT, &flags[5].value, "SIZE", "memory for weights and KV (automatic)"},
        {"ddr", 0, CLI_TEXT, &flags[6].value, "SIZE", "second memory tier (none)"},
        {"exec", 0, CLI_TEXT, &flags[7].value, "LEVEL", "interp, unfused, fused or native"},
        {"numerics", 0, CLI_TEXT, &flags[8].value, "N", "int8 or f32 activations"},
        {"head", 0, CLI_TEXT, &flags[9].value, "FILE", "router head"},
        {NULL},
    };
    const struct cli_spec spec = {
        .command = "serve",
        .arguments = "",
        .about = about,
        .examples = examples,
        .options = options,
    };
    struct conf c;
    struct err e = {0};
    int code = cli_parse(argc, argv, &spec, NULL, NULL);
    if (code != CLI_RUN)
        return code;
    conf_init(&c);
    if (cli_load_conf(&c, config, flags, BASE_COUNT(flags), &e) == ERR_OK)
        code = serve(&c, model);
    else
        code = cli_refuse("serve", &e);
    conf_done(&c);
    return code;
}
