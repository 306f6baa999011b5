/* The program: picks the command. Everything else is in cmd_<name>.c. */
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "daemon/cli.h"
#include "daemon/commands.h"

/* One line per command, in the order that help shows them. */
static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"serve", cmd_serve, "answer OpenAI-style requests over HTTP"},
    {"check", cmd_check, "validate a configuration and print what it means here"},
    {"experts", cmd_experts, "add, list, verify, merge, export and remove experts"},
    {"tiers", cmd_tiers, "plan memory budgets; see and move a server's experts"},
    {"route", cmd_route, "ask the router; train and evaluate its heads"},
    {"chat", cmd_chat, "talk to a running server"},
    {"batch", cmd_batch, "answer a file of requests, each expert loaded once"},
    {"explain", cmd_explain, "show the program that an expert runs"},
    {"compile", cmd_compile, "compile an expert's program ahead of time"},
    {"bench", cmd_bench, "measure this machine and its kernels"},
    {"simulate", cmd_simulate, "run the node on node time: published figures, and traces"},
    {"tokenize", cmd_tokenize, "text to tokens and back, as a model does it"},
    {"template", cmd_template, "render a chat template"},
};

static void print_help(FILE *to)
{
    fprintf(to,
            "Switchyard serves many expert language models from one process: a router picks an\n"
            "expert for each prompt, and experts are brought into memory as they are needed.\n\n"
            "Usage: switchyard COMMAND [options]\n\nCommands:\n");
    for (size_t i = 0; i < BASE_COUNT(commands); i++)
        fprintf(to, "  %-12s%s\n", commands[i].name, commands[i].help);
    fprintf(to, "\nStart here:\n"
                "  switchyard serve --model model.gguf\n"
                "  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"model\": \"auto\",\n"
                "       \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'\n\n"
                "'switchyard COMMAND --help' teaches a command; 'switchyard --version' says which "
                "this is.\n");
}

static int unknown_command(const char *word)
{
    const char *names[BASE_COUNT(commands)];
    for (size_t i = 0; i < BASE_COUNT(commands); i++)
        names[i] = commands[i].name;
    const char *near = cli_suggest(word, names, BASE_COUNT(names));
    fprintf(stderr, "switchyard: there is no command '%s'", word);
    if (near != NULL)
        fprintf(stderr, "; did you mean '%s'?", near);
    fprintf(stderr, "\nTry 'switchyard --help'.\n");
    return CLI_WRONG;
}

static int run_command(int argc, char **argv)
{
    for (size_t i = 0; i < BASE_COUNT(commands); i++)
        if (strcmp(argv[0], commands[i].name) == 0)
            return commands[i].run(argc, argv);
    return unknown_command(argv[0]);
}

/* Started without them, the first files opened would become stdin, stdout and stderr, and the log
 * would be written into the store. */
static void open_standard_files(void)
{
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            _exit(CLI_REFUSED);
}

int main(int argc, char **argv)
{
    open_standard_files();
    /* A reader that went away shows as EPIPE where it is written, never as a signal. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* likewise a file that may not grow: EFBIG */
    if (argc < 2) {
        print_help(stderr);
        return CLI_WRONG;
    }
    const char *word = argv[1];
    if (strcmp(word, "help") == 0 && argc > 2) {
        char help[] = "--help", *asked[] = {argv[2], help, NULL};
        return run_command(2, asked);
    }
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) {
        print_help(stdout);
        return CLI_DONE;
    }
    if (strcmp(word, "--version") == 0) {
        printf("switchyard %s\n", SWITCHYARD_VERSION);
        return CLI_DONE;
    }
    return run_command(argc - 1, argv + 1);
}
