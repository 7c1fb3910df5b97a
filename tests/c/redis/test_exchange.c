#include "commands.h"
#include "fakeserver.h"
int main(void){
  struct fake f; struct rt_pool *pool; struct rt_mailbox *mb; struct rds_options o=quick_options(); struct command c;
  mt_seed();
  fake_start(&f,false,serve_normally,NULL);
  o.path=f.path; o.protocol=2;
  rt_pool_new(2,64,&pool); rt_mailbox_new(&mb);
  struct rds_channel *ch=channel_to(pool,&o);
  run_command(ch,mb,&c,"ECHO 5"); printf("%s\n",command_says(&c)); rds_job_fini(&c.job);
  end_channel(ch,mb); end_commands(pool,mb); rt_mailbox_release(mb); fake_stop(&f);
  return mt_report("t33");
}
