/* The commands of the program, one file each: cmd_<name>.c. Each gets argc and argv with argv[0] the
 * command's own name and returns an exit code of daemon/cli.h. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_COMMANDS_H
#define SWITCHYARD_DAEMON_COMMANDS_H

int cmd_batch(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_bench_serve(int argc, char **argv);
int cmd_bench_fusion(int argc, char **argv);   /* bench fusion */
int cmd_bench_switch(int argc, char **argv);   /* bench switch | load */
int cmd_bench_variants(int argc, char **argv); /* bench variants */
int cmd_chat(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_experts(int argc, char **argv);
int cmd_explain(int argc, char **argv);
int cmd_compile(int argc, char **argv);
int cmd_route(int argc, char **argv);
int cmd_route_replay(int argc, char **argv); /* verbs of cmd_route */
int cmd_route_sweep(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_simulate(int argc, char **argv);
int cmd_template(int argc, char **argv);
int cmd_tiers(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);

#endif
