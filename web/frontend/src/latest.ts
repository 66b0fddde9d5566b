// One request at a time, and only the newest of those that waited.
//
// A slider asks faster than a decoder answers. Aborting the running request at every move would
// show nothing until the hand rests; queueing all of them would show old maps for seconds. So the
// running one is finished and shown, and of those asked meanwhile only the last is sent.

export class Latest<Request, Answer> {
  private waiting: Request | null = null;
  private running = false;

  constructor(
    private readonly send: (request: Request) => Promise<Answer>,
    private readonly show: (answer: Answer) => void,
    private readonly fail: (error: Error) => void,
    private readonly idle: () => void,
  ) {}

  ask(request: Request): void {
    this.waiting = request;
    if (!this.running) void this.run();
  }

  private async run(): Promise<void> {
    this.running = true;
    while (this.waiting !== null) {
      const request = this.waiting;
      this.waiting = null;
      try {
        this.show(await this.send(request));
      } catch (error) {
        this.fail(error instanceof Error ? error : new Error(String(error)));
      }
    }
    this.running = false;
    this.idle();
  }
}
